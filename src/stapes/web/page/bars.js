/** The likeliest labels as bars that move, with their probabilities in words. */

import { percent, readable } from "./format.js";

const LITTLE = 0.01; // of probability
const MOVE = { duration: 240, easing: "cubic-bezier(0.2, 0, 0, 1)" };

/** An ordered list, the likeliest first. */
export class Bars {
  /**
   * @param {HTMLOListElement} list
   * @param {number} most labels that are shown
   */
  constructor(list, most = 5) {
    this._list = list;
    this._most = most;
    /** @type {Map<number, HTMLLIElement>} */
    this._rows = new Map();
    this._calm = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /**
   * @param {ArrayLike<number> | null} probabilities (K,); none: an empty list
   * @param {string[]} labels (K,)
   * @param {boolean} [steady] of a stream: what differs by little does not change places
   */
  show(probabilities, labels, steady = false) {
    const best = probabilities ? this._best(probabilities, steady) : [];
    const before = new Map(
      [...this._rows].map(([i, row]) => [
        i,
        { top: row.offsetTop, share: Number(row.dataset.share) },
      ]),
    );
    for (const [i, row] of this._rows) {
      if (best.includes(i)) continue;
      row.remove();
      this._rows.delete(i);
    }
    best.forEach((i, rank) => {
      const row = this._rows.get(i) ?? this._add(i, labels[i]);
      const share = probabilities ? probabilities[i] : 0;
      row.dataset.share = String(share);
      /** @type {HTMLElement} */ (row.querySelector(".share")).textContent = percent(share);
      /** @type {HTMLElement} */ (row.querySelector(".fill")).style.transform = `scaleX(${share})`;
      if (this._list.children[rank] !== row) {
        this._list.insertBefore(row, this._list.children[rank] ?? null);
      }
    });
    if (!this._calm.matches) this._move(before);
  }

  /**
   * @param {ArrayLike<number>} probabilities
   * @param {boolean} steady
   */
  _best(probabilities, steady) {
    const sorted = top(probabilities, probabilities.length);
    if (!steady) return sorted.slice(0, this._most);
    const shown = [...this._list.children].map((row) => Number(row.getAttribute("data-label")));
    const order = [...shown, ...sorted.filter((i) => !shown.includes(i))];
    // Sorted by insertion, where only what is larger by more than a little goes ahead.
    for (let i = 1; i < order.length; i++) {
      for (let k = i; k > 0; k--) {
        const [a, b] = [order[k - 1], order[k]];
        const ahead = b === sorted[0] || probabilities[b] > probabilities[a] + LITTLE;
        if (!ahead || a === sorted[0]) break;
        [order[k - 1], order[k]] = [b, a];
      }
    }
    return order.slice(0, this._most);
  }

  /** Let rows and bars go from where they were to where they are. */
  _move(/** @type {Map<number, {top: number, share: number}>} */ before) {
    for (const [i, row] of this._rows) {
      const was = before.get(i);
      const share = Number(row.dataset.share);
      if (was && was.top !== row.offsetTop) {
        const from = `translateY(${was.top - row.offsetTop}px)`;
        row.animate([{ transform: from }, { transform: "none" }], MOVE);
      } else if (!was) {
        row.animate([{ opacity: 0 }, { opacity: 1 }], MOVE);
      }
      if (was?.share !== share) {
        row
          .querySelector(".fill")
          ?.animate(
            [{ transform: `scaleX(${was?.share ?? 0})` }, { transform: `scaleX(${share})` }],
            MOVE,
          );
      }
    }
  }

  /** @param {number} i @param {string} label */
  _add(i, label) {
    const row = document.createElement("li");
    row.dataset.label = String(i);
    const name = document.createElement("span");
    name.className = "label";
    name.textContent = readable(label);
    const share = document.createElement("span");
    share.className = "share";
    const track = document.createElement("span");
    track.className = "track";
    track.ariaHidden = "true";
    const fill = document.createElement("span");
    fill.className = "fill";
    track.append(fill);
    row.append(name, " ", share, track);
    this._rows.set(i, row);
    return row;
  }
}

/**
 * Numbers of the largest values, the largest first; of equal ones the first.
 * @param {ArrayLike<number>} values
 * @param {number} count
 */
export function top(values, count) {
  return Array.from(values, (_, i) => i)
    .sort((a, b) => values[b] - values[a] || a - b)
    .slice(0, count);
}
