/** Says in words what changes, to screen readers, without saying too much. */

const PAUSE = 4; // seconds between two announcements of labels

export class Announcer {
  /** @param {HTMLElement} region polite, read out when it changes */
  constructor(region) {
    this._region = region;
    this._label = "";
    this._spoken = -Infinity;
  }

  /** @param {string} sentence said at once, for what happens once */
  say(sentence) {
    this._region.textContent = sentence;
    this._label = "";
  }

  /**
   * The leading label of a stream: said when it is another than the last one said, and not more
   * often than every few seconds.
   * @param {string} label
   * @param {string} text that is said
   */
  lead(label, text) {
    const now = performance.now() / 1000;
    if (label === this._label || now - this._spoken < PAUSE) return;
    this._label = label;
    this._spoken = now;
    this._region.textContent = text;
  }
}
