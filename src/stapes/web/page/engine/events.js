/**
 * Stretches of sound in which one label leads: smoothing, two thresholds, no event twice.
 *
 * The rules are those of stapes.inference.events, where they are drawn and their sources named.
 *
 * @typedef {import("./engine.js").WindowScores} WindowScores
 *
 * @typedef {object} Event
 * @property {number} start seconds
 * @property {number} end seconds
 * @property {string} label
 * @property {number} score mean probability of the label over the stretch
 *
 * @typedef {object} EventOptions
 * @property {number} [threshold] least probability of the leading label, in [0, 1]; 0
 * @property {number|null} [release] an event goes on down to it, in [0, threshold]; the threshold
 * @property {number} [smoothing] windows of the mean, a whole number from 1; 1
 * @property {number} [minSeconds] shorter events are left out; 0
 * @property {number} [gapSeconds] gaps up to this are closed; 0
 */

// A stretch of 0.3 s ends at a start plus 0.3, which in floating point may be a little less.
const ROUNDING = 1e-6;

/** The mean of each window's probabilities and its neighbours'. */
export class Smoother {
  /** @param {number} count windows of a mean */
  constructor(count = 1) {
    if (!Number.isInteger(count) || count < 1) {
      throw new RangeError(`smoothing is a whole number of windows from 1, not ${count}`);
    }
    this._count = count;
    this._before = Math.floor(count / 2);
    this._after = Math.floor((count - 1) / 2);
    this._begin();
  }

  _begin() {
    this._held = [];
    this._taken = 0;
    this._given = 0;
  }

  /**
   * @param {WindowScores} scores
   * @returns {WindowScores[]} at most one
   */
  push(scores) {
    this._held.push(scores);
    if (this._held.length > this._count) this._held.shift();
    this._taken += 1;
    return this._taken - this._given > this._after ? [this._next()] : [];
  }

  /** @returns {WindowScores[]} */
  finish() {
    const rest = [];
    while (this._given < this._taken) rest.push(this._next());
    this._begin();
    return rest;
  }

  _next() {
    const at = this._given - (this._taken - this._held.length);
    this._given += 1;
    const middle = this._held[at];
    const rows = this._held.slice(Math.max(0, at - this._before), at + this._after + 1);
    if (rows.length === 1) return middle;
    const sum = new Float64Array(middle.probabilities.length);
    for (const { probabilities } of rows) {
      for (let k = 0; k < sum.length; k++) sum[k] += probabilities[k];
    }
    const probabilities = Float32Array.from(sum, (found) => found / rows.length);
    return { start: middle.start, end: middle.end, probabilities };
  }
}

/** Finds events in scores as they come, each of them once. */
export class EventDetector {
  /**
   * @param {string[]} labels
   * @param {EventOptions} [options]
   * @throws {RangeError} an option out of range
   */
  constructor(
    labels,
    { threshold = 0, release = null, smoothing = 1, minSeconds = 0, gapSeconds = 0 } = {},
  ) {
    release ??= threshold;
    if (!(threshold >= 0 && threshold <= 1)) {
      throw new RangeError(`threshold must be between 0 and 1, not ${threshold}`);
    }
    if (!(release >= 0 && release <= threshold)) {
      throw new RangeError(`release must be between 0 and the threshold, not ${release}`);
    }
    if (!(minSeconds >= 0) || !(gapSeconds >= 0)) {
      throw new RangeError(`seconds are 0 or more, not ${minSeconds} and ${gapSeconds}`);
    }
    this.labels = labels;
    this._threshold = threshold;
    this._release = release;
    this._minSeconds = minSeconds;
    this._gapSeconds = gapSeconds;
    this._smoother = new Smoother(smoothing);
    this._begin();
  }

  _begin() {
    this._run = newRun(-1, 0);
    this._waiting = null; // ended, but a gap after it may still be closed
    this._last = null;
  }

  /** @returns {Event|null} the event that goes on, as far as it is known */
  get open() {
    let run = this._run;
    if (run.label < 0 || !(run.seconds > 0)) return null;
    if (this._continues(this._waiting, run)) run = joined(this._waiting, run);
    return this._event(run);
  }

  /**
   * Take the next stretch's scores.
   * @param {WindowScores} scores
   * @returns {Event[]} the events that are complete now
   */
  push(scores) {
    return this._smoother.push(scores).flatMap((smooth) => this._take(smooth));
  }

  /**
   * The stream ends.
   * @param {number|null} [end] seconds, up to which the last scores count if that is later
   * @returns {Event[]} the remaining events
   */
  finish(end = null) {
    const events = this._smoother.finish().flatMap((smooth) => this._take(smooth));
    const last = this._last;
    if (end !== null && last && end > last.end) {
      events.push(...this._take({ start: last.end, end, probabilities: last.probabilities }));
    }
    events.push(...this._close(this._run));
    if (this._waiting) events.push(this._event(this._waiting));
    this._begin();
    return events;
  }

  _take(scores) {
    this._last = scores;
    const events = [];
    const label = this._active(scores.probabilities);
    if (label !== this._run.label) {
      events.push(...this._close(this._run));
      this._run = newRun(label, scores.start);
    }
    const seconds = scores.end - scores.start;
    this._run.end = scores.end;
    this._run.weighted += (label >= 0 ? scores.probabilities[label] : 0) * seconds;
    this._run.seconds += seconds;
    const waiting = this._waiting;
    if (
      waiting &&
      !this._continues(waiting, this._run) &&
      scores.end - waiting.end > this._gapSeconds
    ) {
      events.push(this._event(waiting));
      this._waiting = null;
    }
    return events;
  }

  _active(row) {
    let leader = 0;
    for (let k = 1; k < row.length; k++) if (row[k] > row[leader]) leader = k;
    if (row[leader] >= this._threshold) return leader;
    const active = this._run.label;
    return active >= 0 && row[active] >= this._release ? active : -1;
  }

  _continues(waiting, run) {
    return (
      waiting !== null &&
      waiting.label === run.label &&
      run.start - waiting.end <= this._gapSeconds + ROUNDING
    );
  }

  _close(run) {
    if (run.label < 0 || !(run.seconds > 0)) return [];
    if (run.end - run.start < this._minSeconds - ROUNDING) return [];
    const before = this._waiting;
    this._waiting = run;
    if (!before) return [];
    if (this._continues(before, run)) {
      this._waiting = joined(before, run);
      return [];
    }
    return [this._event(before)];
  }

  _event({ start, end, label, weighted, seconds }) {
    return { start, end, label: this.labels[label], score: weighted / seconds };
  }
}

function newRun(label, start) {
  return { label, start, end: start, weighted: 0, seconds: 0 };
}

function joined(first, second) {
  return {
    label: first.label,
    start: first.start,
    end: second.end,
    weighted: first.weighted + second.weighted,
    seconds: first.seconds + second.seconds,
  };
}

/**
 * Join neighbouring stretches with the same leading label into events.
 * @param {WindowScores[]} scores in time order
 * @param {string[]} labels
 * @param {EventOptions} [options]
 * @returns {Event[]} in time order; they do not overlap
 * @throws {RangeError} an option out of range
 */
export function findEvents(scores, labels, options) {
  const detector = new EventDetector(labels, options);
  const events = scores.flatMap((found) => detector.push(found));
  return events.concat(detector.finish());
}

/**
 * The rows of `stapes predict --timeline --format csv`.
 * @param {Event[]} events
 * @param {string} name of the recording
 * @returns {string} with a header
 */
export function eventsToCsv(events, name) {
  const rows = events.map(({ start, end, label, score }) =>
    [quoted(name), decimal(start, 3), decimal(end, 3), quoted(label), decimal(score, 4)].join(","),
  );
  return ["path,start,end,label,score", ...rows, ""].join("\n");
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rounded and written as Python does: a half goes to the even digit, and 1 is 1.0. */
function decimal(x, digits) {
  let rounded = Number(x.toFixed(digits));
  // Of what is written in binary, only odd multiples of 2^-(digits + 1) lie in the middle.
  const doubled = x * 2 ** (digits + 1);
  if (Number.isInteger(doubled) && doubled % 2 !== 0) {
    const below = Math.floor(x * 10 ** digits);
    rounded = (below % 2 === 0 ? below : below + 1) / 10 ** digits;
  }
  return Number.isInteger(rounded) ? `${rounded}.0` : String(rounded);
}
