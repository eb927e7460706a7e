/** What is known about the model, for people: the line under its name, and the list behind it. */

import { count, readable, size } from "./format.js";

/** @typedef {import("./engine/engine.js").Model["info"]} Info */
/** @typedef {{value: number, low?: number | null, high?: number | null}} Value */

/**
 * One line: labels, score, licence, size.
 * @param {Info} info
 */
export function factsLine(info) {
  const card = info.card ?? {};
  return [
    count(info.labels.length, "label"),
    scoreText(card),
    licence(card),
    info.bytes ? size(info.bytes) : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

/**
 * Terms and what there is to say of each; what is not known is left out.
 * @param {Info} info
 * @returns {[string, string][]}
 */
export function factsList(info) {
  const card = info.card ?? {};
  const rate = `${(info.sample_rate / 1000).toLocaleString("en")} kHz`;
  const channels = info.channels === 1 ? "one channel" : count(info.channels, "channel");
  const data = Array.isArray(card.data) ? card.data : card.data ? [card.data] : [];
  /** @type {[string, string][]} */
  const all = [
    ["What it is", text(card.description)],
    ["Hears", info.labels.map(readable).join(", ")],
    ["For", text(card.intended_use)],
    ["Not for", text(card.limits)],
    ["Score", scoreText(card, true)],
    ["Listens to", `windows of ${info.window_seconds} s at ${rate}, ${channels}`],
    ["Arithmetic", text(info.precision)],
    ["Data", [...new Set(data.map(source).filter(Boolean))].join(" ")],
    ["Licence", licence(card)],
    ["Credits", [card.attribution ?? card.citation ?? []].flat().map(text).join(" ")],
  ];
  return all.filter(([, said]) => said);
}

/**
 * "accuracy 79.6 % (95 % interval 77.0 to 82.2)", with all of the circumstances where wished.
 * @param {any} card
 * @param {boolean} [whole]
 */
export function scoreText(card, whole = false) {
  const score = [card.score, card.cross_validated_score, card.metrics].find((s) => s?.accuracy);
  if (!score) return "";
  /** @type {Value} */
  const accuracy = typeof score.accuracy === "number" ? { value: score.accuracy } : score.accuracy;
  const hundred = (/** @type {number} */ x) => (100 * x).toFixed(1);
  let said = `accuracy ${hundred(accuracy.value)}\u00a0%`;
  if (accuracy.low != null && accuracy.high != null) {
    const level = Math.round(100 * (score.level ?? 0.95));
    said += ` (${level}\u00a0% interval ${hundred(accuracy.low)} to ${hundred(accuracy.high)})`;
  }
  if (!whole) return said;
  const more = [
    text(score.kind),
    score.folds ? count(score.folds, "fold") : "",
    score.n_clips ? count(score.n_clips, "recording") : "",
    text(score.note),
  ].filter(Boolean);
  return [said, ...more].join("; ");
}

/** @param {any} card */
function licence(card) {
  const data = Array.isArray(card.data) ? card.data[0] : card.data;
  return text(card.licence ?? data?.licence);
}

/** @param {any} data */
function source(data) {
  if (!data?.name) return "";
  const clips = data.clips ?? data.train_clips;
  return `${data.name}${clips ? `, ${count(clips, "recording")}` : ""}.`;
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value.replaceAll("\n", " ") : "";
}
