/**
 * What is done with the windows of a waveform: their mean, the timeline of a recording, listening.
 *
 * The rules are those of stapes.inference: BaseClassifier.classify, BaseClassifier.windows and Listener.
 * Each class takes `push(block)` with one Float32Array a channel, and `finish()`.
 *
 * @typedef {import("./engine.js").ModelInfo} ModelInfo
 * @typedef {import("./engine.js").WindowScores} WindowScores
 * @typedef {(windows: Float32Array[]) => Promise<Float32Array[]>} Probabilities
 */

import { Converter, resampledLength } from "./resample.js";
import { fitLength, WindowCutter } from "./windows.js";

/** The mean of the probabilities of a whole recording's windows. */
export class Mean {
  /**
   * @param {ModelInfo} info
   * @param {Probabilities} probabilities
   * @param {{sampleRate: number, channels: number, length: number}} recording length in samples
   */
  constructor(info, probabilities, recording) {
    this._probabilities = probabilities;
    this._info = info;
    this._converter = converter(info, recording);
    this._sum = new Float64Array(info.labels.length);
    this._count = 0;
    const window = info.window_samples;
    if (info.longer === "crop") {
      const total = resampledLength(recording.length, recording.sampleRate, info.sample_rate);
      const first = Math.max(0, Math.floor((total - window) / 2));
      this._middle = new Middle(info.channels, first, Math.min(total, first + window));
    } else {
      this._cutter = new WindowCutter(window, info.hop_samples, info.shorter);
    }
  }

  async push(block) {
    await this._take(this._converter.push(block));
    return [];
  }

  /** @returns {Promise<Float32Array>} (K,) */
  async finish() {
    await this._take(this._converter.finish());
    if (this._middle) {
      const { window_samples: window, shorter } = this._info;
      if (this._middle.length) await this._add([fitLength(this._middle.held, window, shorter)]);
    } else if (this._cutter.total) {
      await this._add(this._cutter.finish().map((found) => found.samples));
    }
    if (!this._count) throw new Error("The recording is shorter than one sample of the model.");
    return Float32Array.from(this._sum, (sum) => sum / this._count);
  }

  async _take(block) {
    if (this._middle) this._middle.push(block);
    else if (block[0].length) await this._add(this._cutter.push(block).map((found) => found.samples));
  }

  async _add(windows) {
    for (const row of await this._probabilities(windows)) {
      for (let k = 0; k < row.length; k++) this._sum[k] += row[k];
      this._count += 1;
    }
  }
}

/** Keeps the samples from `first` to `stop`, whatever the blocks are. */
class Middle {
  constructor(channels, first, stop) {
    this.length = stop - first;
    this.held = Array.from({ length: channels }, () => new Float32Array(this.length));
    this._first = first;
    this._at = 0;
  }

  push(block) {
    const begin = Math.max(0, this._first - this._at);
    const end = Math.min(block[0].length, this._first + this.length - this._at);
    if (begin < end) {
      const to = this._at + begin - this._first;
      block.forEach((samples, channel) => this.held[channel].set(samples.subarray(begin, end), to));
    }
    this._at += block[0].length;
  }
}

/** Scores of the successive windows of a recording; their stretches tile it to its end. */
export class Timeline {
  /**
   * @param {ModelInfo} info
   * @param {Probabilities} probabilities
   * @param {{sampleRate: number, channels: number}} recording
   * @param {number} hop samples at the model's rate
   */
  constructor(info, probabilities, recording, hop) {
    this._probabilities = probabilities;
    this._rate = info.sample_rate;
    this._hop = hop;
    this._margin = (info.window_samples - hop) / 2;
    this._converter = converter(info, recording);
    this._cutter = new WindowCutter(info.window_samples, hop, info.shorter);
    this._last = null;
  }

  /** @returns {Promise<WindowScores[]>} */
  async push(block) {
    return this._take(this._converter.push(block));
  }

  /** @returns {Promise<WindowScores[]>} */
  async finish() {
    const scores = await this._take(this._converter.finish());
    if (!this._cutter.total) {
      throw new Error("The recording is shorter than one sample of the model.");
    }
    scores.push(...(await this._classify(this._cutter.finish())));
    const { start, probabilities } = this._last;
    scores.push({ start, end: this._cutter.total / this._rate, probabilities });
    return scores;
  }

  async _take(converted) {
    return converted[0].length ? this._classify(this._cutter.push(converted)) : [];
  }

  async _classify(windows) {
    const rows = await this._probabilities(windows.map((found) => found.samples));
    const scores = [];
    rows.forEach((probabilities, i) => {
      const first = windows[i].start;
      let start = 0;
      if (this._last) {
        // The last window starts wherever it must to reach the end: the stretch before it ends where
        // its own begins, so that no moment counts twice.
        start = (first + this._margin) / this._rate;
        start = Math.min(Math.max(start, this._last.start), this._last.end);
        scores.push({ ...this._last, end: start });
      }
      const end = (first + this._margin + this._hop) / this._rate;
      this._last = { start, end, probabilities };
    });
    return scores;
  }
}

/** Scores of the windows of a stream, each as soon as its last sample has come. */
export class Listener {
  /**
   * @param {ModelInfo} info
   * @param {Probabilities} probabilities
   * @param {{sampleRate: number, channels: number}} source
   * @param {number} hop samples at the model's rate
   */
  constructor(info, probabilities, source, hop) {
    this._info = info;
    this._probabilities = probabilities;
    this._source = source;
    this._rate = info.sample_rate;
    this._hop = hop;
    this._margin = (info.window_samples - hop) / 2;
    this._before = 0; // samples before the present piece: earlier pieces and gaps
    this._begin();
  }

  _begin() {
    this._told = 0; // samples of the piece that windows have spoken for
    this._converter = converter(this._info, this._source);
    this._cutter = new WindowCutter(this._info.window_samples, this._hop, this._info.shorter);
  }

  /** @returns {Promise<WindowScores[]>} */
  async push(block) {
    return this._classify(this._converter.push(block));
  }

  /**
   * Say that sound was lost here. No window reaches across.
   * @param {number} seconds how much
   * @returns {Promise<WindowScores[]>}
   */
  async gap(seconds) {
    const scores = await this._endPiece(false);
    this._before += this._cutter.total + roundHalfEven(seconds * this._rate);
    this._begin();
    return scores;
  }

  /** @returns {Promise<WindowScores[]>} */
  async finish() {
    return this._endPiece(this._before === 0);
  }

  async _endPiece(shortToo) {
    const scores = await this._classify(this._converter.finish());
    const { total } = this._cutter;
    if (total === 0 || (total < this._info.window_samples && !shortToo)) return scores;
    const windows = this._cutter.finish().map((found) => found.samples);
    for (const row of await this._probabilities(windows)) {
      scores.push(this._scores(this._told, total, row));
    }
    return scores;
  }

  async _classify(converted) {
    if (!converted[0].length) return [];
    const windows = this._cutter.push(converted);
    const rows = await this._probabilities(windows.map((found) => found.samples));
    return rows.map((row, i) => {
      const end = windows[i].start + this._margin + this._hop;
      const scores = this._scores(this._told, end, row);
      this._told = end;
      return scores;
    });
  }

  _scores(start, end, probabilities) {
    return {
      start: (this._before + start) / this._rate,
      end: (this._before + end) / this._rate,
      probabilities,
    };
  }
}

function converter(info, { sampleRate, channels }) {
  return new Converter(sampleRate, channels, info.sample_rate, info.channels);
}

/**
 * As Python rounds: a half goes to the even neighbour.
 * @param {number} x
 * @returns {number}
 */
export function roundHalfEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}
