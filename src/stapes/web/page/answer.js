/** The likeliest label in large letters, and the bars of the first few. */

import { Bars, top } from "./bars.js";
import { element } from "./element.js";
import { readable, time } from "./format.js";

/** @typedef {import("./item.js").Item} Item */

const CALM_MS = 500; // between two means of what is computed so far

/** What is shown, where it is not the window of a number. */
const WHOLE = -2;
const SO_FAR = -3;

/** Of the whole recording, of the moment that is heard, or of the present. */
export class Answer {
  /** @param {string[]} labels of the model */
  constructor(labels) {
    this._labels = labels;
    this._bars = new Bars(element("bars", HTMLOListElement));
    this._told = NaN; // what is shown
    this._toldAt = 0; // milliseconds
  }

  /** Something else may have to be shown: look again. */
  forget() {
    this._told = NaN;
  }

  /**
   * @param {Item} item
   * @param {number | null} place seconds that are heard now; none while nothing is
   * @param {number} threshold less likely labels are shown as uncertain
   * @returns {{label: string, probability: number} | null} what leads, if it is news
   */
  show(item, place, threshold) {
    const live = item.state === "listening";
    let at = item.answer ? WHOLE : SO_FAR;
    if (live) at = item.scores.length - 1;
    if (place !== null) at = windowAt(item.scores, place);
    const now = performance.now();
    if (at === this._told || (at === SO_FAR && now - this._toldAt < CALM_MS)) return null;
    this._told = at === SO_FAR ? NaN : at; // of which there is more to come
    this._toldAt = now;
    const [probabilities, title] = this._found(item, at);
    element("answer-title").textContent = title;
    this._bars.show(probabilities, this._labels, live);
    const answer = element("answer");
    if (!probabilities) {
      answer.textContent = live ? "Listening" : "";
      answer.dataset.label = "";
      return null;
    }
    const [best] = top(probabilities, 1);
    const [label, probability] = [this._labels[best], probabilities[best]];
    if (answer.dataset.label !== label) answer.textContent = readable(label);
    answer.dataset.label = label;
    answer.classList.toggle("faint", probability < threshold);
    return { label, probability };
  }

  /**
   * @param {Item} item
   * @param {number} at
   * @returns {[Float32Array | null, string]} probabilities, and what they are of
   */
  _found(item, at) {
    if (at === WHOLE) return [item.answer, "Whole recording"];
    if (at === SO_FAR) {
      return item.scores.length ? [mean(item.scores), "Mean so far"] : [null, "Answer"];
    }
    const window = item.scores[at];
    if (item.state === "listening") return [window?.probabilities ?? null, "Now"];
    return window ? [window.probabilities, `At ${time(window.start)}`] : [null, "Answer"];
  }
}

/**
 * @param {{end: number}[]} scores in time order
 * @param {number} seconds
 * @returns {number} the window that speaks for a moment; -1 for none
 */
function windowAt(scores, seconds) {
  let [low, high] = [0, scores.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle].end > seconds) high = middle;
    else low = middle + 1;
  }
  return scores.length ? low : -1;
}

/** @param {{probabilities: Float32Array}[]} scores one at least */
function mean(scores) {
  const sum = new Float64Array(scores[0].probabilities.length);
  for (const { probabilities } of scores) {
    for (let k = 0; k < sum.length; k++) sum[k] += probabilities[k] / scores.length;
  }
  return Float32Array.from(sum);
}
