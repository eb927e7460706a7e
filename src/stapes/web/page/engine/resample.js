/**
 * Sample rate and number of channels, as stapes.audio.resample changes them.
 *
 * Python resamples with soxr's HQ: linear phase, 20 bits, pass band to 0.913 and stop band from 1.0 of
 * the lower of the two Nyquist frequencies. Here it is a polyphase filter whose taps are taken from
 *
 *     g(t) = sum over j of d[j] (k(t - j / 2) + k(t + j / 2)) / 2,    t in samples of the lower rate,
 *     k(t) = c sinc(c t) I0(b sqrt(1 - (t / h)^2)) / I0(b),    |t| < h,
 *
 * a sinc under a Kaiser window and a slight bend of its response. c, b, h and d were fitted to soxr's
 * measured impulse responses (tools/measure_soxr.py); for a ratio that was not measured they are those
 * of a ratio like it.
 */

import { products } from "./dot.js";
import { CUTOFF, FILTERS } from "./soxr.js";

/** For other ratios, which soxr interpolates as well. */
const LIKE_IT = { down: "320/147", up: "147/160" };

/** More phases than this are interpolated from a table of fewer. */
const MOST_PHASES = 1024;
const INTERPOLATED_PHASES = 64;

/**
 * Samples after resampling: a half is rounded up.
 * @param {number} samples
 * @param {number} fromRate Hz
 * @param {number} toRate Hz
 * @returns {number}
 */
export function resampledLength(samples, fromRate, toRate) {
  return Math.floor((2 * samples * toRate + fromRate) / (2 * fromRate));
}

/**
 * One channel from many is their mean; many from one are copies; fewer from many are the first ones.
 * @param {Float32Array[]} block one array a channel, of equal lengths
 * @param {number} channels wanted
 * @returns {Float32Array[]} the arrays given, where they are as wanted
 */
export function mapChannels(block, channels) {
  const present = block.length;
  if (channels === present) return block;
  if (channels === 1) {
    const mixed = block[0].slice();
    for (let channel = 1; channel < present; channel++) {
      const other = block[channel];
      for (let i = 0; i < mixed.length; i++) mixed[i] += other[i];
    }
    const share = Math.fround(1 / present);
    for (let i = 0; i < mixed.length; i++) mixed[i] *= share;
    return [mixed];
  }
  if (present === 1) return Array.from({ length: channels }, () => block[0]);
  return block.slice(0, channels);
}

/** Takes a waveform block by block and gives it at another rate with other channels. */
export class Converter {
  /**
   * @param {number} fromRate Hz
   * @param {number} fromChannels
   * @param {number} toRate Hz
   * @param {number} toChannels
   * @throws {Error} channels that cannot become those wanted
   */
  constructor(fromRate, fromChannels, toRate, toChannels) {
    if (fromChannels !== 1 && toChannels > fromChannels) {
      throw new Error(
        `The recording has ${fromChannels} channels; the model needs ${toChannels}.`,
      );
    }
    this.channels = toChannels;
    this._resamplers =
      fromRate === toRate
        ? null
        : Array.from({ length: toChannels }, () => new Resampler(fromRate, toRate));
  }

  /**
   * @param {Float32Array[]} block one array a channel
   * @returns {Float32Array[]} lags behind; of any length, 0 too
   */
  push(block) {
    const mapped = mapChannels(block, this.channels);
    if (!this._resamplers) return mapped;
    return this._resamplers.map((resampler, channel) => resampler.push(mapped[channel]));
  }

  /** @returns {Float32Array[]} the rest; call once */
  finish() {
    if (!this._resamplers) {
      return Array.from({ length: this.channels }, () => new Float32Array(0));
    }
    return this._resamplers.map((resampler) => resampler.finish());
  }
}

/** One channel, streamed: all outputs joined are what one long block would have given. */
export class Resampler {
  /**
   * @param {number} fromRate Hz
   * @param {number} toRate Hz
   */
  constructor(fromRate, toRate) {
    this.fromRate = fromRate;
    this.toRate = toRate;
    this._filter = filter(fromRate, toRate);
    const { reach, table } = this._filter;
    const { held, dot } = products(table, 2 * reach, Math.max(4 * reach, 1 << 15));
    // Before the first sample and behind the last there is silence.
    this._held = held;
    this._dot = dot;
    this._filled = reach - 1;
    this._from = 1 - reach; // the input sample that stands first in `_held`
    this._taken = 0;
    this._given = 0;
    // Output n lies at input n * step / phases: `_at` whole samples and `_phase` parts.
    this._at = 0;
    this._phase = 0;
  }

  /**
   * @param {Float32Array} samples
   * @returns {Float32Array}
   */
  push(samples) {
    this._taken += samples.length;
    return this._run(samples, Infinity);
  }

  /** @returns {Float32Array} */
  finish() {
    const total = resampledLength(this._taken, this.fromRate, this.toRate);
    // Half a sample of rounding up may lie behind the last input sample.
    const silence = new Float32Array(this._filter.reach + Math.ceil(this.fromRate / this.toRate));
    return this._run(silence, total - this._given);
  }

  _run(samples, most) {
    const { phases, step, reach } = this._filter;
    const parts = Math.ceil(((samples.length + 1) * phases) / step) + 1;
    const found = new Float32Array(Math.min(most, parts + Math.ceil((reach * phases) / step)));
    let count = 0;
    for (let taken = 0; taken < samples.length; ) {
      if (this._held.length - this._filled < samples.length - taken) this._drop();
      const piece = samples.subarray(taken, taken + this._held.length - this._filled);
      this._held.set(piece, this._filled);
      this._filled += piece.length;
      taken += piece.length;
      const end = this._from + this._filled - reach; // the last sample whose surroundings are held
      while (this._at < end && count < most) {
        found[count++] = this._output();
        this._phase += step;
        const whole = Math.floor(this._phase / phases);
        this._at += whole;
        this._phase -= whole * phases;
      }
    }
    this._given += count;
    return found.subarray(0, count);
  }

  _drop() {
    const first = Math.min(this._filled, this._at - this._filter.reach + 1 - this._from);
    this._held.copyWithin(0, first, this._filled);
    this._filled -= first;
    this._from += first;
  }

  _output() {
    const { phases, reach, tablePhases } = this._filter;
    const first = this._at - reach + 1 - this._from;
    if (tablePhases === phases) return this._dot(first, this._phase);
    // Interpolated between rows; row 0 stands for the phase before 0.
    const place = (this._phase / phases) * tablePhases;
    const row = Math.floor(place);
    const weights = lagrange(place - row);
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += weights[k] * this._dot(first, row + k);
    return sum;
  }
}

const filters = new Map();

/** The taps around an output for each of its phases between two input samples. */
function filter(fromRate, toRate) {
  const divisor = greatestCommonDivisor(fromRate, toRate);
  const phases = toRate / divisor;
  const step = fromRate / divisor;
  const key = `${step}/${phases}`;
  const known = filters.get(key);
  if (known) return known;
  const design = FILTERS[key] ?? FILTERS[step > phases ? LIKE_IT.down : LIKE_IT.up];
  const shape = tabulated(design);
  const scale = Math.min(1, toRate / fromRate); // samples of the lower rate in one of the input
  const reach = 4 * Math.ceil((shape.half / scale + 1) / 4); // taps on a side: 8 make a step of dot
  const exact = phases <= MOST_PHASES;
  const tablePhases = exact ? phases : INTERPOLATED_PHASES;
  const rows = exact ? phases : tablePhases + 3;
  const before = exact ? 0 : 1;
  const table = new Float32Array(rows * 2 * reach);
  for (let row = 0; row < rows; row++) {
    const fraction = (row - before) / tablePhases;
    for (let tap = 0; tap < 2 * reach; tap++) {
      table[row * 2 * reach + tap] = scale * shape.at((tap - reach + 1 - fraction) * scale);
    }
  }
  const made = { phases, step, reach, table, tablePhases };
  filters.clear(); // one recording after the other: one is enough
  filters.set(key, made);
  return made;
}

const GRID = 128; // places in a sample of the lower rate

/** g, by four-point interpolation between places of a grid (to -160 dB). */
function tabulated([beta, halfKernel, bends]) {
  const half = halfKernel + (bends.length - 1) / 2;
  const last = Math.ceil(half * GRID) + 3;
  const kernel = Float64Array.from({ length: last + 1 }, (_, i) => k(i / GRID, beta, halfKernel));
  const bent = Float64Array.from({ length: last + 1 }, (_, i) => {
    let sum = 0;
    bends.forEach((bend, j) => {
      const shift = (j * GRID) / 2;
      sum += (bend / 2) * ((kernel[Math.abs(i - shift)] ?? 0) + (kernel[i + shift] ?? 0));
    });
    return sum;
  });
  const value = (i) => bent[Math.abs(i)] ?? 0;
  const at = (t) => {
    const place = t * GRID;
    const i = Math.floor(place);
    const [a, b, c, d] = lagrange(place - i);
    return a * value(i - 1) + b * value(i) + c * value(i + 1) + d * value(i + 2);
  };
  return { half, at };
}

/** Weights of the values at -1, 0, 1 and 2 for the cubic through them at u, in [0, 1]. */
function lagrange(u) {
  return [
    (-u * (u - 1) * (u - 2)) / 6,
    ((u + 1) * (u - 1) * (u - 2)) / 2,
    (-(u + 1) * u * (u - 2)) / 2,
    ((u + 1) * u * (u - 1)) / 6,
  ];
}

function k(t, beta, half) {
  if (t >= half) return 0;
  const x = Math.PI * CUTOFF * t;
  const sinc = x === 0 ? 1 : Math.sin(x) / x;
  return (CUTOFF * sinc * bessel(beta * Math.sqrt(1 - (t / half) ** 2))) / bessel(beta);
}

/** Modified Bessel function of the first kind, order 0, by its power series. */
function bessel(x) {
  const quarter = (x * x) / 4;
  let term = 1;
  let sum = 1;
  for (let k = 1; term > 1e-17 * sum; k++) {
    term *= quarter / (k * k);
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}
