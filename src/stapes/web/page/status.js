/** What the page is doing, and what went wrong. */

/** @typedef {"loading" | "ready" | "decoding" | "computing" | "listening" | "broken"} Doing */

export class Status {
  /**
   * @param {{root: HTMLElement, text: HTMLElement, progress: HTMLProgressElement,
   *   cancel: HTMLButtonElement, problem: HTMLElement, problemText: HTMLElement,
   *   dismiss: HTMLButtonElement, home: HTMLElement}} elements home gets the focus of a button that goes
   */
  constructor(elements) {
    this._elements = elements;
    elements.dismiss.addEventListener("click", () => {
      this.clear();
      elements.home.focus();
    });
  }

  /**
   * @param {Doing} doing
   * @param {{text?: string, fraction?: number | null, cancel?: boolean}} [more] fraction none:
   *     nobody knows how far; not given: no bar
   */
  set(doing, { text = "", fraction, cancel = false } = {}) {
    const { root, progress, cancel: button } = this._elements;
    document.documentElement.dataset.state = doing;
    root.hidden = !text;
    if (this._elements.text.textContent !== text) this._elements.text.textContent = text;
    progress.hidden = fraction === undefined;
    if (fraction === null) progress.removeAttribute("value");
    else if (fraction !== undefined) progress.value = fraction;
    if (!cancel && document.activeElement === button) this._elements.home.focus();
    button.hidden = !cancel;
  }

  /** @param {string} sentence */
  fail(sentence) {
    this._elements.problemText.textContent = sentence;
    this._elements.problem.hidden = false;
  }

  clear() {
    this._elements.problem.hidden = true;
    this._elements.problemText.textContent = "";
  }
}
