/** The Fourier transform of real samples. */

/** Power spectra of real samples, a power of two of them: radix 2, in place, in double precision. */
export class RealFft {
  /**
   * @param {number} n samples, a power of two from 4
   */
  constructor(n) {
    if (n < 4 || n & (n - 1)) throw new RangeError(`n is a power of two from 4, not ${n}`);
    this.n = n;
    // N real samples are taken as N/2 complex ones, and their spectra are told apart afterwards.
    const half = n / 2;
    this._re = new Float64Array(half);
    this._im = new Float64Array(half);
    this._cos = Float64Array.from({ length: half }, (_, k) => Math.cos((2 * Math.PI * k) / n));
    this._sin = Float64Array.from({ length: half }, (_, k) => Math.sin((2 * Math.PI * k) / n));
    this._reversed = reversedBits(half);
  }

  /**
   * |X[k]|^2 for k = 0 .. n/2.
   * @param {ArrayLike<number>} samples (n,)
   * @param {Float64Array} out (n/2 + 1,), written
   */
  power(samples, out) {
    const { n, _re: re, _im: im, _cos: cos, _sin: sin, _reversed: reversed } = this;
    const half = n / 2;
    for (let i = 0; i < half; i++) {
      const j = reversed[i];
      re[i] = samples[2 * j];
      im[i] = samples[2 * j + 1];
    }
    for (let size = 2; size <= half; size *= 2) {
      const step = n / size; // of the table, which holds the n-th roots
      for (let first = 0; first < half; first += size) {
        for (let k = 0, t = 0; k < size / 2; k++, t += step) {
          const a = first + k;
          const b = a + size / 2;
          const tr = re[b] * cos[t] + im[b] * sin[t];
          const ti = im[b] * cos[t] - re[b] * sin[t];
          re[b] = re[a] - tr;
          im[b] = im[a] - ti;
          re[a] += tr;
          im[a] += ti;
        }
      }
    }
    out[0] = (re[0] + im[0]) ** 2;
    out[half] = (re[0] - im[0]) ** 2;
    for (let k = 1; k < half; k++) {
      // X[k] = E[k] + exp(-2 pi i k / n) O[k], of the even and the odd samples.
      const er = (re[k] + re[half - k]) / 2;
      const ei = (im[k] - im[half - k]) / 2;
      const or = (im[k] + im[half - k]) / 2;
      const oi = (re[half - k] - re[k]) / 2;
      const xr = er + cos[k] * or + sin[k] * oi;
      const xi = ei + cos[k] * oi - sin[k] * or;
      out[k] = xr * xr + xi * xi;
    }
  }
}

/**
 * @param {number} n a power of two
 */
function reversedBits(n) {
  const reversed = new Uint32Array(n);
  for (let i = 1; i < n; i++) reversed[i] = (reversed[i >> 1] >> 1) | (i & 1 ? n >> 1 : 0);
  return reversed;
}
