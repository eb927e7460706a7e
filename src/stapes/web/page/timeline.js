/** Events as buttons on the time axis; those out of view are not in the page. */

import { percent, readable, time } from "./format.js";

/** @typedef {{start: number, end: number, label: string, score: number}} Event */

const MARGIN = 400; // pixels beside the view in which events are kept
const GAP = 2; // pixels between neighbours

/** One tab stop; arrow keys go from event to event, as in every toolbar. */
export class Timeline {
  /**
   * @param {HTMLElement} lane
   * @param {{
   *   play: (event: Event) => void,
   *   reveal: (event: Event) => void,
   * }} actions of a button: when it is pressed, and when it is come to
   */
  constructor(lane, actions) {
    this._lane = lane;
    this._actions = actions;
    /** @type {Event[]} */
    this._events = [];
    /** @type {Map<number, HTMLButtonElement>} */
    this._buttons = new Map();
    /** @type {string[]} */
    this._labels = [];
    this._current = 0; // the event that the tab key comes to
    /** @type {Event | null} */
    this._playing = null;
    this._playable = true;
    lane.addEventListener("keydown", (event) => this._key(event));
    lane.addEventListener("click", (event) => {
      const at = this._at(event.target);
      if (at === null) return;
      this._current = at;
      if (this._playable) actions.play(this._events[at]);
      this._mark();
    });
    lane.addEventListener("focusin", (event) => {
      const at = this._at(event.target);
      if (at === null) return;
      this._current = at;
      this._mark();
    });
  }

  /** @param {string[]} labels of the model: each has a colour of its own */
  set labels(labels) {
    this._labels = labels;
  }

  /**
   * @param {Event[]} events in time order
   * @param {boolean} playable whether they can be heard now
   */
  show(events, playable) {
    const focused = this._lane.contains(document.activeElement);
    // What goes on grows at its end: the buttons of events that only grew stay where they are.
    for (const [i, button] of this._buttons) {
      if (events[i] && same(events[i], this._events[i])) continue;
      button.remove();
      this._buttons.delete(i);
    }
    this._events = events;
    this._playable = playable;
    this._current = Math.min(this._current, Math.max(0, events.length - 1));
    this._focus = focused && !this._buttons.has(this._current);
    this._mark();
  }

  /** @param {Event | null} event that is heard now */
  set playing(event) {
    this._playing = event;
    this._mark();
  }

  /**
   * Place the buttons of the stretch in view.
   * @param {{from: number, to: number, pixelsPerSecond: number}} view
   */
  draw(view) {
    const margin = MARGIN / view.pixelsPerSecond;
    const wanted = new Set([this._current]);
    // Events follow each other, so that those in view are neighbours.
    for (let i = this._first(view.from - margin); i < this._events.length; i++) {
      if (this._events[i].start > view.to + margin) break;
      wanted.add(i);
    }
    for (const [i, button] of this._buttons) {
      if (wanted.has(i)) continue;
      button.remove();
      this._buttons.delete(i);
    }
    const before = this._buttons.size;
    for (const i of [...wanted].sort((a, b) => a - b)) {
      const event = this._events[i];
      if (!event) continue;
      const button = this._buttons.get(i) ?? this._add(i);
      const width = Math.max(3, (event.end - event.start) * view.pixelsPerSecond - GAP);
      button.style.left = `${event.start * view.pixelsPerSecond + GAP / 2}px`;
      button.style.width = `${width}px`;
      button.classList.toggle("narrow", width < 34);
    }
    if (this._buttons.size !== before) this._mark();
    if (this._focus) {
      this._focus = false;
      this._buttons.get(this._current)?.focus({ preventScroll: true });
    }
  }

  /** @param {number} i */
  _add(i) {
    const event = this._events[i];
    const button = document.createElement("button");
    button.type = "button";
    button.className = "event";
    button.dataset.index = String(i);
    const label = Math.max(0, this._labels.indexOf(event.label));
    button.style.setProperty("--hue", String(Math.round((label * 137.508 + 20) % 360)));
    const name = document.createElement("span");
    name.className = "event-label";
    name.textContent = readable(event.label);
    button.append(name);
    this._buttons.set(i, button);
    const next = [...this._buttons.keys()].filter((k) => k > i).sort((a, b) => a - b)[0];
    this._lane.insertBefore(button, next === undefined ? null : (this._buttons.get(next) ?? null));
    return button;
  }

  _mark() {
    for (const [i, button] of this._buttons) {
      const event = this._events[i];
      if (!event) continue;
      const heard = this._playing !== null && same(event, this._playing);
      const text =
        `${readable(event.label)}, ${time(event.start)} to ${time(event.end)}, ` +
        percent(event.score);
      write(button, "tabindex", i === this._current ? "0" : "-1");
      write(button, "aria-pressed", String(heard));
      write(button, "aria-disabled", String(!this._playable));
      write(button, "aria-label", text);
      write(button, "title", text);
    }
  }

  /** @param {EventTarget | null} target */
  _at(target) {
    const button = target instanceof Element ? target.closest("button.event") : null;
    return button instanceof HTMLElement ? Number(button.dataset.index) : null;
  }

  /** @param {number} seconds @returns {number} the first event that ends after them */
  _first(seconds) {
    let [low, high] = [0, this._events.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this._events[middle].end > seconds) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const last = this._events.length - 1;
    const steps = /** @type {Record<string, number>} */ ({
      ArrowLeft: this._current - 1,
      ArrowRight: this._current + 1,
      Home: 0,
      End: last,
    });
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this._current = Math.min(last, Math.max(0, steps[event.key]));
    this._focus = true;
    this._actions.reveal(this._events[this._current]);
  }
}

/**
 * One event, even if it has grown.
 * @param {Event} a @param {Event} b
 */
function same(a, b) {
  return a.start === b.start && a.label === b.label;
}

/** @param {Element} element @param {string} name @param {string} value */
function write(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
