/** The recording that is looked at: picture, events, answer, playing; kept true to what is known. */

import { findEvents } from "./engine/engine.js";
import { Answer } from "./answer.js";
import { colourMap } from "./colours.js";
import { element } from "./element.js";
import { clock, count, percent, readable } from "./format.js";
import { frequencyTicks } from "./frequencies.js";
import { Player } from "./player.js";
import { drawTimeAxis } from "./seconds.js";
import { Spectrogram } from "./spectrogram.js";
import { EventTable } from "./table.js";
import { Timeline } from "./timeline.js";
import { TimeView } from "./view.js";

/** @typedef {import("./item.js").Item} Item */
/** @typedef {import("./controls.js").Settings} Settings */
/** @typedef {{start: number, end: number, label: string, score: number}} Event */

const LIVE_SECONDS = 20; // in view while listening

export class Workbench {
  /**
   * @param {{labels: string[], sample_rate: number, window_seconds: number}} info of the model
   * @param {() => Settings} settings
   * @param {(label: string, text: string) => void} lead called with the label that leads while
   *     listening, and what there is to say of it
   * @param {(sentence: string) => void} failed called when a recording cannot be played
   */
  constructor(info, settings, lead, failed) {
    this._info = info;
    this._settings = settings;
    this._lead = lead;
    /** @type {Item | null} */
    this._item = null;
    /** @type {Event[]} */
    this._events = [];
    /** @type {Event | null} */
    this._playing = null;
    this._place = 0; // seconds, where playing begins
    this._stale = false; // the events are not those of the scores and settings any more
    this._frame = 0;
    this._canvas = element("spectrogram", HTMLCanvasElement);
    this._spectrogram = new Spectrogram(this._canvas);
    this._scroller = element("scroller");
    this._view = new TimeView(this._scroller, element("strip"), () => this.refresh());
    this._answer = new Answer(info.labels);
    this._player = new Player(() => this._played(), failed);
    this._table = new EventTable(
      element("rows", HTMLTableSectionElement),
      element("more", HTMLButtonElement),
      (event) => this._toggle(event),
    );
    this._timeline = new Timeline(element("lane"), {
      play: (event) => this._toggle(event),
      reveal: (event) => {
        this._view.reveal(event.start, event.end);
        this.refresh();
      },
    });
    this._timeline.labels = info.labels;
    this._colours();
    this._actions();
  }

  _colours() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const colour = () => {
      this._spectrogram.recolour(colourMap(dark.matches ? "dark" : "light"));
      this.refresh();
    };
    dark.addEventListener("change", colour);
    colour();
  }

  _actions() {
    const play = () => {
      if (this._player.playing) this._player.stop();
      else void this._playFrom(this._place >= (this._item?.duration ?? 0) - 0.05 ? 0 : this._place);
    };
    element("play").addEventListener("click", play);
    element("zoom-in").addEventListener("click", () => this._zoom(1));
    element("zoom-out").addEventListener("click", () => this._zoom(-1));
    element("fit").addEventListener("click", () => this._view.fit());
    /** @type {Record<string, () => void>} */
    const keys = {
      " ": play,
      "+": () => this._zoom(1),
      "=": () => this._zoom(1),
      "-": () => this._zoom(-1),
      0: () => this._view.fit(),
    };
    this._scroller.addEventListener("keydown", (event) => {
      const key = keys[event.key];
      if (!key || event.target !== this._scroller || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      if (this._playable || event.key !== " ") key();
    });
    this._canvas.addEventListener("click", (event) => {
      const x = event.clientX - this._scroller.getBoundingClientRect().left;
      this._place = Math.min(
        this._item?.duration ?? 0,
        this._view.from + x / this._view.pixelsPerSecond,
      );
      if (this._playable) void this._playFrom(this._place);
    });
  }

  /**
   * The playhead stays where it is seen; where it is not, the middle does.
   * @param {number} direction 1 closer, -1 away
   */
  _zoom(direction) {
    const { from, to, pixelsPerSecond } = this._view;
    const seen = this._place > 0 && this._place >= from && this._place <= to;
    this._view.zoom(direction, seen ? (this._place - from) * pixelsPerSecond : undefined);
  }

  /** @returns {Event[]} of the recording that is looked at, with the present settings */
  get events() {
    if (this._stale && this._item) this._findEvents(this._item);
    return this._events;
  }

  /** @returns {boolean} whether there is sound to play */
  get _playable() {
    return Boolean(this._item?.recording);
  }

  /**
   * Look at another recording, or at one that has just been decoded.
   * @param {Item} item
   */
  open(item) {
    const other = item !== this._item;
    this._item = item;
    this._player.load(item.recording);
    if (other) {
      this._place = 0;
      this._timeline.show([], false);
      this._table.show([], false);
    }
    // What the model hears: frequencies above half its rate are not drawn.
    this._spectrogram.show(item.samples, this._info.sample_rate / 2);
    if (item.state === "listening") this._view.follow(LIVE_SECONDS);
    else this._view.open(item.duration);
    this.update(item);
  }

  /**
   * More is known about a recording.
   * @param {Item} item
   */
  update(item) {
    if (item !== this._item) return;
    element("sound").classList.toggle("failed", item.state === "failed");
    this._stale = true;
    this._answer.forget();
    this.refresh();
  }

  /** Other settings: other events of the same scores. */
  resettle() {
    this._stale = true;
    this._answer.forget();
    this.refresh();
  }

  /** Draw in the next frame. */
  refresh() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0;
      this._draw();
    });
  }

  _draw() {
    const item = this._item;
    if (!item) return;
    if (item.state === "listening" && item.duration !== this._view.duration) {
      this._view.grow(item.duration);
    }
    if (this._stale) this._findEvents(item);
    const position = this._player.position;
    if (position !== null) {
      const inView = this._place >= this._view.from && this._place <= this._view.to;
      this._place = position;
      if (inView) this._view.reveal(position); // who has scrolled away stays there
    }
    const { from, to, pixelsPerSecond, width } = this._view;
    const height = this._canvas.clientHeight;
    const more = this._spectrogram.draw({ from, pixelsPerSecond, width, height });
    drawTimeAxis(element("seconds", HTMLCanvasElement), {
      from,
      pixelsPerSecond,
      width,
      height: 24,
      until: Math.max(item.duration, this._view.duration),
    });
    this._drawFrequencies(height);
    this._timeline.draw({ from, to, pixelsPerSecond });
    this._drawPlace(item);
    this._drawAnswer(item);
    if (more || position !== null || item.state === "listening") this.refresh();
  }

  /** @param {Item} item */
  _findEvents(item) {
    this._stale = false;
    const { threshold, release, smoothing } = this._settings();
    this._events = item.scores.length
      ? findEvents(item.scores, this._info.labels, { threshold, release, smoothing })
      : [];
    const playable = this._playable;
    this._timeline.show(this._events, playable);
    this._table.show(this._events, playable);
    element("play", HTMLButtonElement).disabled = !playable;
    element("table").hidden = !this._events.length;
    element("events-title").textContent = this._events.length
      ? count(this._events.length, "event")
      : "Events";
    const none = element("no-events");
    none.hidden = this._events.length > 0;
    const over = ["done", "stopped"].includes(item.state);
    none.textContent = over
      ? "No label reaches the threshold: lower it to see events."
      : "None so far.";
    element("csv", HTMLButtonElement).disabled = !this._events.length;
  }

  /** @param {number} height */
  _drawFrequencies(height) {
    const highest = this._info.sample_rate / 2;
    const axis = element("frequencies");
    if (axis.dataset.height === String(height)) return;
    axis.dataset.height = String(height);
    axis.replaceChildren(
      ...frequencyTicks(highest, height).map((tick) => {
        const label = document.createElement("span");
        label.textContent = tick.label;
        label.style.top = `${tick.fromTop}px`;
        return label;
      }),
    );
  }

  /** @param {Item} item */
  _drawPlace(item) {
    const playhead = element("playhead");
    playhead.hidden = !this._playable || (this._place === 0 && !this._player.playing);
    playhead.style.transform = `translateX(${this._place * this._view.pixelsPerSecond}px)`;
    playhead.dataset.seconds = this._place.toFixed(3);
    const live = item.state === "listening";
    element("place").textContent = clock(live ? item.duration : this._place);
    element("length").textContent = live ? "" : ` / ${clock(item.duration)}`;
    element("clock").hidden = !item.samples;
  }

  /** @param {Item} item */
  _drawAnswer(item) {
    const { threshold } = this._settings();
    const found = this._answer.show(item, this._player.playing ? this._place : null, threshold);
    if (found && item.state === "listening" && found.probability >= threshold) {
      const { label, probability } = found;
      this._lead(label, `${readable(label)}, ${percent(probability)}`);
    }
  }

  /** @param {Event} event */
  _toggle(event) {
    if (this._playing && this._playing.start === event.start && this._player.playing) {
      this._player.stop();
      return;
    }
    const { duration } = this._item ?? { duration: 0 };
    this._view.reveal(event.start, event.end);
    this._place = event.start;
    void this._player.play(event.start, Math.min(duration, event.end)).then(() => {
      if (!this._player.playing) return; // stopped meanwhile, or cannot be played
      this._playing = event;
      this._markPlaying();
    });
  }

  /** @param {number} seconds */
  async _playFrom(seconds) {
    await this._player.play(seconds, this._item?.duration ?? 0);
    this._playing = null;
    this._markPlaying();
  }

  _played() {
    if (!this._player.playing) this._playing = null;
    this._markPlaying();
  }

  _markPlaying() {
    const { playing } = this._player;
    const button = element("play");
    button.setAttribute("aria-label", playing ? "Stop" : "Play");
    button.classList.toggle("playing", playing);
    element("sound").classList.toggle("playing", playing);
    this._timeline.playing = this._playing;
    this._table.playing = this._playing;
    this._answer.forget();
    this.refresh();
  }
}
