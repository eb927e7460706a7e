/** Numbers, times and names as the page writes them. */

const SPACE = "\u00a0"; // between a number and its unit: they stay on one line

/**
 * A probability in per cent, with one decimal: 0.9344 is "93.4 %".
 * @param {number} probability in [0, 1]
 */
export function percent(probability) {
  return `${(100 * probability).toFixed(1)}${SPACE}%`;
}

/**
 * A moment or a length in words: "3.2 s", from a minute on "1:03.2", from an hour on "1:02:03".
 * @param {number} seconds 0 or more
 * @param {number} [digits] after the point
 */
export function time(seconds, digits = 1) {
  const rounded = Number(seconds.toFixed(digits));
  return rounded < 60 ? `${rounded.toFixed(digits)}${SPACE}s` : clock(seconds, digits);
}

/**
 * As a clock: "0:03.2", "1:02:03".
 * @param {number} seconds 0 or more
 * @param {number} [digits] after the point, under an hour
 */
export function clock(seconds, digits = 1) {
  const rounded = Number(seconds.toFixed(digits));
  const hours = Math.floor(rounded / 3600);
  const minutes = Math.floor((rounded % 3600) / 60);
  if (hours) return `${hours}:${two(minutes)}:${two(Math.floor(rounded % 60))}`;
  return `${minutes}:${(rounded % 60).toFixed(digits).padStart(digits + 3, "0")}`;
}

/**
 * How long something is still going to take, as a person would say it: "8 s", "3 min", "2 h".
 * @param {number} seconds 0 or more
 */
export function roughly(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))}${SPACE}s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}${SPACE}min`;
  return `${Math.round(seconds / 3600)}${SPACE}h`;
}

/**
 * A label for people to read; files keep it as it is.
 * @param {string} label
 */
export function readable(label) {
  return label.replaceAll("_", " ");
}

/**
 * @param {number} bytes
 */
export function size(bytes) {
  return bytes < 1e6
    ? `${Math.round(bytes / 1e3)}${SPACE}kB`
    : `${(bytes / 1e6).toFixed(1)}${SPACE}MB`;
}

/**
 * A count with its noun: "1 event", "1,200 clips".
 * @param {number} n
 * @param {string} noun in the singular
 */
export function count(n, noun) {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

/** @param {number} n */
function two(n) {
  return String(n).padStart(2, "0");
}
