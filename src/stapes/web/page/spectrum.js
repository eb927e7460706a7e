/** One column of the spectrogram: levels of a moment, from the highest frequency to the lowest. */

import { RealFft } from "./fft.js";
import { hertz, mel } from "./frequencies.js";

/** @typedef {import("./samples.js").Samples} Samples */

const FRAME_SECONDS = 0.046; // as long as the frames of common front ends: 1024 at 22.05 kHz
const MOST_FRAMES = 16; // of one column: what is far zoomed out is sampled, not read whole

/** Levels are stored in half decibels above this: a byte holds -120 to 7.5 dB. */
export const LOWEST_DB = -120;

/** Computes columns. A sine of full scale has 0 dB. */
export class Spectrum {
  /**
   * @param {Samples} samples
   * @param {number} highest Hz at the top
   * @param {number} rows of a column
   */
  constructor(samples, highest, rows) {
    this.samples = samples;
    this.rows = rows;
    const n = 2 ** Math.round(Math.log2(FRAME_SECONDS * samples.rate));
    this._fft = new RealFft(Math.max(64, n));
    const size = this._fft.n;
    // Hann window, periodic. A sine of full scale at a bin has |X| = sum(window) / 2.
    this._window = Float64Array.from(
      { length: size },
      (_, i) => (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size)) * (4 / size),
    );
    this._frame = new Float32Array(size);
    this._power = new Float64Array(size / 2 + 1);
    this._loudest = new Float64Array(size / 2 + 1);
    // The edges of the rows in bins, upwards; what is above half the rate is silent.
    const bins = Array.from(
      { length: rows + 1 },
      (_, i) => (hertz((mel(highest) * i) / rows) * size) / samples.rate,
    );
    this._edges = Float64Array.from(bins);
  }

  /** Samples that a column needs after its middle. */
  get reach() {
    return this._fft.n / 2;
  }

  /**
   * Levels around a moment.
   * @param {number} middle seconds
   * @param {number} seconds that the column stands for; of a longer one the loudest frame counts,
   *     in each row by itself
   * @param {Uint8Array} out (rows,) half decibels above LOWEST_DB, highest frequency first; written
   * @returns {number} the largest of them
   */
  column(middle, seconds, out) {
    const { rate } = this.samples;
    const size = this._fft.n;
    const frames = Math.min(MOST_FRAMES, Math.max(1, Math.ceil((seconds * rate) / size)));
    this._loudest.fill(0);
    for (let i = 0; i < frames; i++) {
      const at = middle + seconds * ((i + 0.5) / frames - 0.5);
      this.samples.read(Math.round(at * rate) - size / 2, this._frame);
      for (let k = 0; k < size; k++) this._frame[k] *= this._window[k];
      this._fft.power(this._frame, this._power);
      for (let k = 0; k < this._power.length; k++) {
        if (this._power[k] > this._loudest[k]) this._loudest[k] = this._power[k];
      }
    }
    let largest = 0;
    for (let row = 0; row < this.rows; row++) {
      const power = this._between(this._edges[row], this._edges[row + 1]);
      const level = power > 0 ? 2 * (10 * Math.log10(power) - LOWEST_DB) : 0;
      const byte = Math.min(255, Math.max(0, Math.round(level)));
      out[this.rows - 1 - row] = byte;
      if (byte > largest) largest = byte;
    }
    return largest;
  }

  /**
   * The largest power between two places among the bins, between bins a straight line.
   * @param {number} low
   * @param {number} high
   */
  _between(low, high) {
    const power = this._loudest;
    const last = power.length - 1;
    if (low >= last) return 0;
    const first = Math.ceil(low);
    const end = Math.min(last, Math.floor(high));
    let found = 0;
    for (let k = first; k <= end; k++) if (power[k] > found) found = power[k];
    if (end >= first) return found;
    const at = (low + Math.min(high, last)) / 2;
    const below = Math.floor(at);
    return power[below] + (power[Math.min(last, below + 1)] - power[below]) * (at - below);
  }
}
