/**
 * Where the spectrogram takes its samples from: one channel, the mean of all, of a recording or of
 * what the microphone has heard so far.
 *
 * @typedef {{
 *   rate: number,
 *   length: number,
 *   complete: boolean,
 *   read: (from: number, out: Float32Array) => void,
 * }} Samples rate in Hz; length in samples so far, complete when no more will come; read writes zeros
 *     where there is no sound (any more).
 */

/** @implements {Samples} */
export class RecordedSamples {
  /** @param {{sampleRate: number, channels: Float32Array[]}} recording */
  constructor(recording) {
    this.rate = recording.sampleRate;
    this.length = recording.channels[0].length;
    this.complete = true;
    this._channels = recording.channels;
  }

  /** @param {number} from @param {Float32Array} out */
  read(from, out) {
    out.fill(0);
    const first = Math.max(0, from);
    const last = Math.min(this.length, from + out.length);
    for (const channel of this._channels) {
      for (let i = first; i < last; i++) out[i - from] += channel[i];
    }
    const gain = 1 / this._channels.length;
    if (gain !== 1) for (let i = 0; i < out.length; i++) out[i] *= gain;
  }
}

/**
 * The last minutes of the microphone, in a ring.
 * @implements {Samples}
 */
export class LiveSamples {
  /**
   * @param {number} rate Hz
   * @param {number} seconds that are kept
   */
  constructor(rate, seconds = 180) {
    this.rate = rate;
    this.length = 0;
    this.complete = false;
    this._ring = new Float32Array(Math.ceil(rate * seconds));
  }

  /** @param {Float32Array[]} channels of equal length */
  push(channels) {
    const ring = this._ring;
    const n = channels[0].length;
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      ring[(this.length + i) % ring.length] = sum / channels.length;
    }
    this.length += n;
  }

  /** @param {number} from @param {Float32Array} out */
  read(from, out) {
    const ring = this._ring;
    const oldest = Math.max(0, this.length - ring.length);
    for (let i = 0; i < out.length; i++) {
      const at = from + i;
      out[i] = at >= oldest && at < this.length ? ring[at % ring.length] : 0;
    }
  }
}
