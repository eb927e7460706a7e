/** What was opened and heard, and the one thing that is computed at a time. */

import { decode } from "./engine/engine.js";
import { time } from "./format.js";
import { newItem, release, stamp, without } from "./item.js";
import { LiveSamples, RecordedSamples } from "./samples.js";

/** @typedef {import("./engine/engine.js").Model} Model */
/** @typedef {import("./engine/engine.js").Recording} Recording */
/** @typedef {import("./item.js").Item} Item */

const SHORT = 10; // windows up to which the answer for the whole comes before the timeline
const LEAST_GAP = 0.05; // seconds of sound without answers that people are told of
const SETTLED = 1; // seconds in which a device may stumble
const SWITCH = "another recording is wanted first";

/** Computes one recording after the other; tells `changed` about every step. */
export class Session {
  /**
   * @param {Model} model
   * @param {{
   *   hopSeconds: (item: Item) => number,
   *   changed: (item: Item) => void,
   *   selected: (item: Item) => void,
   *   failed: (sentence: string) => void,
   * }} view
   */
  constructor(model, view) {
    this._model = model;
    this._view = view;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Item | null} */
    this.selected = null;
    /** @type {AbortController | null} */
    this._control = null;
    /** @type {Item | null} */
    this._busy = null;
    /** @type {{stop: () => Promise<Recording>} | null} */
    this._listening = null;
    this._turning = false; // the microphone on or off
    this._unwanted = false; // the microphone, before it was on
    /** @type {Item | null} */
    this._cancelled = null; // the last that was busy when somebody cancelled
  }

  /** @returns {boolean} whether the microphone is on, or about to be */
  get listening() {
    return this._turning || this._listening !== null;
  }

  /**
   * Take up files; the first of them is looked at.
   * @param {File[]} files
   */
  async open(files) {
    if (this._listening) await this.stopListening();
    const items = files.map((file) => newItem(file.name, file));
    this.items.push(...items);
    this.select(items[0]);
  }

  /**
   * Look at a recording, and compute it next if that is to be done.
   * @param {Item} item
   */
  select(item) {
    const before = this.selected;
    this.selected = item;
    if (before && before !== item) release(before, this._busy);
    if (item.state === "stopped" || (item.state === "done" && !item.recording)) {
      item.state = "waiting";
    }
    this._view.selected(item);
    if (this._busy && this._busy !== item && item.state === "waiting") {
      this._control?.abort(SWITCH);
    }
    void this._work();
  }

  /** Stop computing: what is known stays, what waited is left. */
  cancel() {
    for (const item of this.items) {
      if (item.state !== "waiting") continue;
      item.state = "stopped";
      this._view.changed(item);
    }
    this._cancelled = this._busy;
    this._control?.abort();
  }

  /** The hop has changed: all scores are computed anew. */
  rescore() {
    for (const item of this.items) {
      if (item.state === "done" || item.state === "stopped") item.state = "waiting";
    }
    if (this._busy) this._control?.abort(SWITCH);
    void this._work();
  }

  /** Listen to the microphone until `stopListening`; what was heard becomes a recording. */
  async listen() {
    if (this.listening) return;
    this._turning = true;
    this._unwanted = false;
    this.cancel();
    const item = newItem(`microphone ${stamp(new Date())}`, null);
    item.state = "listening";
    item.hopSeconds = this._view.hopSeconds(item);
    /** @type {Float32Array[][]} */
    let early = []; // sound that comes before its rate is known
    /** @type {LiveSamples | null} */
    let live = null;
    try {
      this._listening = await this._model.microphone({
        hopSeconds: item.hopSeconds,
        onScores: (scores) => {
          item.scores.push(...scores);
          this._view.changed(item);
        },
        onGap: ({ at, seconds }) => {
          if (at > SETTLED && seconds > LEAST_GAP) this._view.failed(gapSentence(at, seconds));
        },
        onEnd: (message) => {
          this._view.failed(sentence(new Error(message)));
          void this.stopListening();
        },
        onSamples: (channels) => {
          if (!live) {
            early.push(channels);
            return;
          }
          live.push(channels);
          item.duration = live.length / live.rate;
        },
      });
      const { sampleRate } = /** @type {any} */ (this._listening);
      live = new LiveSamples(sampleRate);
      early.forEach((channels) => live?.push(channels));
      early = [];
      item.samples = live;
      this.items.push(item);
      const before = this.selected;
      this.selected = item;
      if (before) release(before, this._busy);
      this._view.selected(item);
    } catch (error) {
      this._view.failed(sentence(error));
    } finally {
      this._turning = false;
    }
    if (this._unwanted && this._listening) await this.stopListening();
    void this._work(); // what was opened while the browser asked, if it may not listen
  }

  /** Stop the microphone, and answer what it heard as a whole. */
  async stopListening() {
    if (this._turning && !this._listening) this._unwanted = true; // as soon as it is on
    const item = this.items.find((other) => other.state === "listening");
    if (!this._listening || this._turning || !item) return;
    this._turning = true;
    try {
      item.recording = await this._listening.stop();
    } catch (error) {
      item.state = "failed";
      item.problem = sentence(error);
      this._view.failed(item.problem);
      item.recording = /** @type {any} */ (error).recording ?? null; // to be tried again, or saved
    } finally {
      this._turning = false;
      this._listening = null;
    }
    if (item.recording) this._keep(item, item.recording);
    if (this.selected === item) this._view.selected(item);
    else this._view.changed(item);
    void this._work();
  }

  /**
   * What was heard becomes a recording like any other.
   * @param {Item} item @param {Recording} recording
   */
  _keep(item, recording) {
    recording.name = item.name;
    item.duration = recording.duration;
    const { offset = 0 } = recording;
    item.scores = without(offset, item.scores);
    if (offset > 0) {
      this._view.failed(
        `The first ${time(offset)} of what was heard are gone: the last ${time(item.duration)} are kept, and times count from there.`,
      );
    }
    item.samples = item.duration > 0 ? new RecordedSamples(recording) : null;
    item.state = item.samples ? "waiting" : "failed";
    if (!item.samples) item.problem = "The microphone gave no sound.";
  }

  /** Compute what waits, the recording that is looked at first, until nothing does. */
  async _work() {
    if (this._busy) return;
    for (;;) {
      const item =
        this.selected?.state === "waiting"
          ? this.selected
          : this.items.find((other) => other.state === "waiting");
      if (!item || this.listening) return;
      this._busy = item;
      this._control = new AbortController();
      const { signal } = this._control;
      try {
        await this._compute(item, signal);
        item.state = "done";
      } catch (error) {
        if (signal.aborted) {
          const switched = signal.reason === SWITCH && this._cancelled !== item;
          item.state = switched ? "waiting" : "stopped";
        } else {
          item.state = "failed";
          item.problem = sentence(error);
        }
      } finally {
        this._busy = this._control = this._cancelled = null;
      }
      if (item !== this.selected) release(item, null);
      this._view.changed(item);
    }
  }

  /** @param {Item} item @param {AbortSignal} signal */
  async _compute(item, signal) {
    if (!item.recording) {
      item.state = "decoding";
      this._view.changed(item);
      const recording = await decode(/** @type {File} */ (item.file));
      signal.throwIfAborted();
      item.recording = recording;
      item.duration = recording.duration;
      item.samples = new RecordedSamples(recording);
      if (this.selected === item) this._view.selected(item);
    }
    item.state = "computing";
    const began = performance.now();
    this._view.changed(item);
    const known = item.answer && item.hopSeconds === this._view.hopSeconds(item);
    const short = item.duration <= SHORT * this._model.info.window_seconds;
    if (short) await this._answer(item, signal);
    if (item.hopSeconds !== this._view.hopSeconds(item)) await this._score(item, signal);
    await this._answer(item, signal);
    if (!known) item.seconds = (performance.now() - began) / 1000;
  }

  /** @param {Item} item @param {AbortSignal} signal */
  async _answer(item, signal) {
    if (item.answer) return;
    item.answer = await this._model.classify(/** @type {Recording} */ (item.recording), {
      signal,
      onProgress: this._progress(item, signal),
    });
    this._view.changed(item);
  }

  /** @param {Item} item @param {AbortSignal} signal */
  async _score(item, signal) {
    const hopSeconds = this._view.hopSeconds(item);
    item.hopSeconds = null;
    item.scores = [];
    const scores = await this._model.windows(/** @type {Recording} */ (item.recording), {
      hopSeconds,
      signal,
      onScores: (found) => {
        if (signal.aborted) return;
        item.scores.push(...found);
        this._view.changed(item);
      },
      onProgress: this._progress(item, signal),
    });
    signal.throwIfAborted();
    item.scores = scores;
    item.hopSeconds = hopSeconds;
  }

  /**
   * How far one of the two passes over a recording is.
   * @param {Item} item @param {AbortSignal} signal
   */
  _progress(item, signal) {
    const began = performance.now();
    item.progress = 0;
    item.secondsLeft = null;
    return (/** @type {number} */ fraction) => {
      if (signal.aborted) return;
      const seconds = (performance.now() - began) / 1000;
      item.progress = fraction;
      item.secondsLeft = seconds > 1 && fraction > 0 ? (seconds / fraction) * (1 - fraction) : null;
      this._view.changed(item);
    };
  }
}

/** @param {number} at @param {number} seconds */
function gapSentence(at, seconds) {
  return `${time(seconds)} of sound at ${time(at)} have no answer: this device lost them, or is too slow for so short a hop.`;
}

/** @param {unknown} error */
function sentence(error) {
  const text = error instanceof Error ? error.message : String(error);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
