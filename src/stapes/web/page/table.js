/** Events as a table: for screen readers, for touch, and to read exact times. */

import { percent, readable, time } from "./format.js";

/** @typedef {{start: number, end: number, label: string, score: number}} Event */

const PAGE = 100; // rows at first, and with each wish for more

export class EventTable {
  /**
   * @param {HTMLTableSectionElement} body
   * @param {HTMLButtonElement} more
   * @param {(event: Event) => void} play
   */
  constructor(body, more, play) {
    this._body = body;
    this._more = more;
    /** @type {Event[]} */
    this._events = [];
    this._shown = PAGE;
    this._playable = true;
    /** @type {Event | null} */
    this._playing = null;
    body.addEventListener("click", (click) => {
      const button = click.target instanceof Element ? click.target.closest("button") : null;
      if (button && this._playable) play(this._events[Number(button.dataset.index)]);
    });
    more.addEventListener("click", () => {
      const first = this._shown;
      this._shown += PAGE;
      this._fill();
      body.rows[first]?.querySelector("button")?.focus();
    });
  }

  /**
   * @param {Event[]} events in time order
   * @param {boolean} playable whether they can be heard now
   */
  show(events, playable) {
    if (!events.length) this._shown = PAGE;
    this._events = events;
    this._playable = playable;
    this._fill();
  }

  /** @param {Event | null} event that is heard now */
  set playing(event) {
    this._playing = event;
    this._fill();
  }

  _fill() {
    const rows = Math.min(this._shown, this._events.length);
    while (this._body.rows.length > rows) this._body.deleteRow(-1);
    for (let i = 0; i < rows; i++) {
      const row = this._body.rows[i] ?? this._add(i);
      const event = this._events[i];
      const [heard, start, end, label, score] = row.cells;
      const button = /** @type {HTMLButtonElement} */ (heard.firstElementChild);
      const name = `Play ${readable(event.label)} at ${time(event.start)}`;
      const playing = this._playing?.start === event.start && this._playing.label === event.label;
      if (button.ariaLabel !== name) button.ariaLabel = name;
      button.setAttribute("aria-pressed", String(playing));
      button.disabled = !this._playable;
      write(start, time(event.start, 2));
      write(end, time(event.end, 2));
      write(label, readable(event.label));
      write(score, percent(event.score));
    }
    const left = this._events.length - rows;
    this._more.hidden = left < 1;
    this._more.textContent = `Show ${Math.min(PAGE, left)} more of ${left}`;
  }

  /** @param {number} i */
  _add(i) {
    const row = this._body.insertRow();
    const button = document.createElement("button");
    button.type = "button";
    button.className = "play";
    button.dataset.index = String(i);
    row.insertCell().append(button);
    for (let cell = 0; cell < 4; cell++) row.insertCell();
    for (const number of [row.cells[1], row.cells[2], row.cells[4]]) number.className = "number";
    return row;
  }
}

/** @param {HTMLElement} cell @param {string} text */
function write(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}
