/** Windows of one length out of a waveform that comes block by block, as stapes.audio.windows. */

/**
 * @typedef {object} Window
 * @property {number} start its first sample
 * @property {Float32Array} samples channel after channel
 */

/**
 * Make a waveform exactly as long as wanted: of a longer one its middle.
 * @param {Float32Array[]} waveform one array a channel
 * @param {number} length samples
 * @param {"pad"|"repeat"} shorter a shorter one gets zeros after it, or starts again
 * @returns {Float32Array} channel after channel
 */
export function fitLength(waveform, length, shorter) {
  const fitted = new Float32Array(waveform.length * length);
  waveform.forEach((samples, channel) => {
    const first = channel * length;
    if (samples.length >= length) {
      const middle = Math.floor((samples.length - length) / 2);
      fitted.set(samples.subarray(middle, middle + length), first);
    } else if (shorter === "repeat" && samples.length) {
      for (let i = 0; i < length; i++) fitted[first + i] = samples[i % samples.length];
    } else {
      fitted.set(samples, first);
    }
  });
  return fitted;
}

/**
 * Windows start at 0, hop, 2 hop and so on; one more ends with the last sample, unless one did.
 * A window is given with the block that completes it.
 */
export class WindowCutter {
  /**
   * @param {number} window samples
   * @param {number} hop samples between starts
   * @param {"pad"|"repeat"} shorter see {@link fitLength}
   */
  constructor(window, hop, shorter) {
    this.total = 0;
    this._window = window;
    this._hop = hop;
    this._shorter = shorter;
    this._start = 0; // of the next window
    // The last samples, twice a window of them at most: the next window's, and the last window's.
    this._held = null;
    this._heldFrom = 0;
  }

  /**
   * @param {Float32Array[]} block one array a channel
   * @returns {Window[]}
   */
  push(block) {
    const window = this._window;
    this._held ??= block.map(() => new Float32Array(2 * window));
    const found = [];
    for (let taken = 0; taken < block[0].length; ) {
      let filled = this.total - this._heldFrom;
      if (filled === 2 * window) {
        for (const held of this._held) held.copyWithin(0, window);
        this._heldFrom += window;
        filled = window;
      }
      const count = Math.min(block[0].length - taken, 2 * window - filled);
      this._held.forEach((held, channel) =>
        held.set(block[channel].subarray(taken, taken + count), filled),
      );
      taken += count;
      this.total += count;
      while (this._start + window <= this.total) {
        found.push(this._cut(this._start));
        this._start += this._hop;
      }
    }
    return found;
  }

  /**
   * The waveform ends.
   * @returns {Window[]} the window that ends with the last sample, if none has yet
   */
  finish() {
    if (!this._held) return [];
    if (this.total < this._window) {
      const whole = this._held.map((held) => held.subarray(0, this.total));
      return [{ start: 0, samples: fitLength(whole, this._window, this._shorter) }];
    }
    if (this._start - this._hop + this._window < this.total) {
      return [this._cut(this.total - this._window)];
    }
    return [];
  }

  _cut(start) {
    const at = start - this._heldFrom;
    const samples = new Float32Array(this._held.length * this._window);
    this._held.forEach((held, channel) =>
      samples.set(held.subarray(at, at + this._window), channel * this._window),
    );
    return { start, samples };
  }
}
