/** A model that listens to the microphone. */

import { joined } from "./joined.js";
import { openMicrophone } from "./microphone.js";

const KEPT_MINUTES = 15; // of sound: 165 MiB a channel at 48 kHz
const MOST_WAITING_SECONDS = 20; // of sound that the model has not got to yet

/** What `Model.microphone` gives. */
export class Listening {
  /**
   * @param {import("./engine.js").ModelInfo} info
   * @param {object} backend
   * @param {number} hop samples at the model's rate
   * @param {object} hearer the callbacks of `Model.microphone`
   * @param {typeof openMicrophone} [open]
   * @returns {Promise<Listening>}
   */
  static async begin(info, backend, hop, hearer, open = openMicrophone) {
    const listening = new Listening(hearer);
    listening._microphone = await open(info.channels, {
      onBlock: (block) => listening._hear(block),
      onLost: (samples) => listening._lose(samples),
      onEnd: (message) => hearer.onEnd?.(message),
    });
    const { sampleRate, channels } = listening._microphone;
    /** Hz of what is heard. */
    listening.sampleRate = sampleRate;
    /** Minutes of sound that are kept: of longer listening, the last ones. */
    listening.keptMinutes = KEPT_MINUTES;
    try {
      listening._stream = await backend.open("listen", { sampleRate, channels }, hop);
    } catch (error) {
      await listening._microphone.stop();
      throw error;
    }
    listening._feed();
    return listening;
  }

  constructor(hearer) {
    this._hearer = hearer;
    this._kept = []; // blocks
    this._keptSamples = 0;
    this._dropped = 0; // samples before those kept
    this._heard = 0; // samples, lost ones too
    this._waiting = []; // blocks and gaps for the model
    this._waitingSamples = 0;
    this._stream = null;
    this._feeding = null;
    this._failure = null;
  }

  /**
   * Stop listening.
   * @returns {Promise<import("./engine.js").Recording>} what was heard, when the last scores are told
   * @throws {Error} the model failed while listening; its `recording` is what was heard
   */
  async stop() {
    await this._microphone.stop();
    this._feed();
    await this._feeding;
    const recording = this._recording();
    if (this._failure) throw Object.assign(this._failure, { recording });
    this._tell(await this._stream.finish());
    return recording;
  }

  _recording() {
    const { sampleRate } = this;
    const channels = Array.from({ length: this._microphone.channels }, (_, channel) =>
      joined(this._kept.map((block) => block[channel])),
    );
    const duration = this._keptSamples / sampleRate;
    return { name: "microphone", sampleRate, channels, duration, offset: this._dropped / sampleRate };
  }

  _hear(block) {
    const samples = block[0].length;
    this._heard += samples;
    this._keep(block);
    this._hearer.onSamples?.(block);
    this._waiting.push({ block });
    this._waitingSamples += samples;
    this._feed();
  }

  /** Silence in the recording, so that times stay right; a gap for the model. */
  _lose(samples) {
    this._gap(samples);
    this._heard += samples;
    const { channels } = this._microphone;
    const silence = Array.from({ length: channels }, () => new Float32Array(samples));
    this._keep(silence);
    this._hearer.onSamples?.(silence);
    this._waiting.push({ lost: samples });
  }

  _keep(block) {
    this._kept.push(block);
    this._keptSamples += block[0].length;
    while (this._keptSamples > KEPT_MINUTES * 60 * this._rate()) {
      const oldest = this._kept.shift()[0].length;
      this._keptSamples -= oldest;
      this._dropped += oldest;
    }
  }

  _rate() {
    return this.sampleRate ?? Infinity;
  }

  _gap(samples) {
    const { sampleRate } = this;
    this._hearer.onGap?.({ at: this._heard / sampleRate, seconds: samples / sampleRate });
  }

  _feed() {
    if (!this._stream || this._feeding || this._failure) return;
    this._feeding = this._work()
      .catch((error) => {
        this._failure = error;
        this._hearer.onEnd?.(error.message);
      })
      .finally(() => (this._feeding = null));
  }

  async _work() {
    while (this._waiting.length) {
      if (this._waitingSamples > MOST_WAITING_SECONDS * this.sampleRate) this._skip();
      if (this._waiting[0].lost) {
        const { lost } = this._waiting.shift();
        this._tell(await this._stream.gap(lost / this.sampleRate));
        continue;
      }
      const parts = [];
      while (this._waiting.length && this._waiting[0].block) parts.push(this._waiting.shift().block);
      const block = parts[0].map((_, channel) => joined(parts.map((part) => part[channel])));
      this._waitingSamples -= block[0].length;
      this._tell(await this._stream.push(block));
    }
  }

  /** The model is too slow: what waits becomes a gap, and is told. */
  _skip() {
    const samples = this._waiting.reduce((sum, { block, lost }) => sum + (lost ?? block[0].length), 0);
    const { sampleRate } = this;
    this._hearer.onGap?.({ at: (this._heard - samples) / sampleRate, seconds: samples / sampleRate });
    this._waiting = [{ lost: samples }];
    this._waitingSamples = 0;
  }

  _tell(scores) {
    if (scores.length) this._hearer.onScores?.(scores);
  }
}
