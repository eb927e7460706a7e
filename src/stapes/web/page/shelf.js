/** The recordings that were opened, to go from one to the other. */

import { percent, readable, time } from "./format.js";
import { top } from "./bars.js";

/** @typedef {import("./item.js").Item} Item */

export class Shelf {
  /**
   * @param {HTMLElement} nav
   * @param {HTMLUListElement} list
   * @param {string[]} labels
   * @param {(item: Item) => void} select
   */
  constructor(nav, list, labels, select) {
    this._nav = nav;
    this._list = list;
    this._labels = labels;
    this._select = select;
    /** @type {Map<Item, HTMLButtonElement>} */
    this._buttons = new Map();
  }

  /**
   * @param {Item[]} items
   * @param {Item | null} selected
   */
  show(items, selected) {
    this._nav.hidden = items.length < 2;
    for (const item of items) {
      const button = this._buttons.get(item) ?? this._add(item);
      const said = this._said(item);
      const part = /** @type {HTMLElement} */ (button.lastElementChild);
      if (part.textContent !== said) part.textContent = said;
      button.setAttribute("aria-current", String(item === selected));
      button.dataset.state = item.state;
    }
  }

  /** @param {Item} item */
  _said(item) {
    if (item.state === "failed") return "cannot be used";
    if (item.state === "waiting" && !item.answer) return "waiting";
    if (item.state === "listening") return "listening";
    if (!item.answer) return item.state === "stopped" ? "not computed" : "computing";
    const [best] = top(item.answer, 1);
    return `${readable(this._labels[best])} ${percent(item.answer[best])}, ${time(item.duration)}`;
  }

  /** @param {Item} item */
  _add(item) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = item.name;
    button.append(name, " ", document.createElement("span"));
    button.addEventListener("click", () => this._select(item));
    row.append(button);
    this._list.append(row);
    this._buttons.set(item, button);
    return button;
  }
}
