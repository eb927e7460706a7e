/** One recording on the page, and what is known about it. */

/** @typedef {import("./engine/engine.js").Recording} Recording */
/** @typedef {import("./engine/engine.js").WindowScores} WindowScores */
/** @typedef {import("./samples.js").Samples} Samples */
/**
 * @typedef {"waiting" | "decoding" | "computing" | "done" | "stopped" | "failed" | "listening"} State
 */
/**
 * One recording, and what is known about it.
 *
 * @typedef {{
 *   name: string,
 *   file: File | null,
 *   state: State,
 *   problem: string,
 *   recording: Recording | null,
 *   samples: Samples | null,
 *   duration: number,
 *   answer: Float32Array | null,
 *   scores: WindowScores[],
 *   hopSeconds: number | null,
 *   progress: number,
 *   seconds: number,
 *   secondsLeft: number | null,
 * }} Item
 *     file is none of what the microphone heard, whose recording is therefore kept; of the others
 *     only the one that is looked at is held decoded. scores are those of the hop, all of them when
 *     the state is done. progress is in [0, 1]; secondsLeft is none while nothing is known; seconds
 *     are those that the last computation took.
 */

/** @param {string} name @param {File | null} file @returns {Item} */
export function newItem(name, file) {
  return {
    name,
    file,
    state: "waiting",
    problem: "",
    recording: null,
    samples: null,
    duration: 0,
    answer: null,
    scores: [],
    hopSeconds: null,
    progress: 0,
    seconds: 0,
    secondsLeft: null,
  };
}

/**
 * Let go of decoded samples that can be had again from the file.
 * @param {Item} item
 * @param {Item | null} busy
 */
export function release(item, busy) {
  if (!item.file || item === busy) return;
  item.recording = null;
  item.samples = null;
}

/**
 * Scores of what is left when the first seconds are gone.
 * @param {number} seconds
 * @param {WindowScores[]} scores
 * @returns {WindowScores[]}
 */
export function without(seconds, scores) {
  if (!seconds) return scores;
  return scores
    .filter(({ end }) => end > seconds)
    .map(({ start, end, probabilities }) => ({
      start: Math.max(0, start - seconds),
      end: end - seconds,
      probabilities,
    }));
}

/**
 * A moment for a file's name.
 * @param {Date} date
 */
export function stamp(date) {
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join("-")}`;
}
