/**
 * A stapes model in the browser, with the answers that Python gives.
 *
 *     import { loadModel, decode, findEvents } from "./engine/engine.js";
 *     const model = await loadModel();
 *     const recording = await decode(file);
 *     const scores = await model.windows(recording);
 *     const events = findEvents(scores, model.info.labels, { threshold: 0.5 });
 *
 * Nothing leaves the computer: the model is fetched from beside the page, and all else happens in it.
 */

import { decode } from "./decode.js";
import { EventDetector, eventsToCsv, findEvents } from "./events.js";
import { Listening } from "./listening.js";
import { roundHalfEven } from "./streams.js";
import { toWav } from "./wav.js";

export { decode, EventDetector, eventsToCsv, findEvents, toWav };

/**
 * @typedef {object} ModelInfo model.json
 * @property {string} stapes version that wrote it
 * @property {string} name
 * @property {string[]} labels (K,)
 * @property {number} sample_rate Hz
 * @property {number} channels of a window
 * @property {number} window_samples
 * @property {number} window_seconds
 * @property {number} hop_samples between the windows of a longer recording that is classified
 * @property {number|null} hop_seconds
 * @property {"pad"|"repeat"} shorter
 * @property {"window"|"crop"} longer
 * @property {"float32"|"int8"} precision
 * @property {number} bytes of model.onnx
 * @property {Object<string, any>} card
 * @property {string[]} files of the page
 *
 * @typedef {object} Recording
 * @property {string} name
 * @property {number} sampleRate Hz
 * @property {Float32Array[]} channels the samples, one array a channel
 * @property {number} duration seconds
 * @property {number} [offset] seconds of a microphone's sound before it that were not kept
 *
 * @typedef {object} WindowScores
 * @property {number} start seconds
 * @property {number} end seconds
 * @property {Float32Array} probabilities (K,)
 */

/**
 * @param {string} [base] folder of model.json and model.onnx, against the page's address
 * @returns {Promise<Model>}
 * @throws {Error} one clear sentence
 */
export async function loadModel(base = ".") {
  const folder = new URL(`${base.replace(/\/$/, "")}/`, document.baseURI);
  const backend = new Backend();
  try {
    const url = new URL("model.json", folder);
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status}).`);
    const info = await response.json();
    await backend.ask("load", { info, model: new URL("model.onnx", folder).href });
    return new Model(info, backend);
  } catch (error) {
    backend.close();
    throw error;
  }
}

/** A model, ready to use. Several recordings may be classified at once. */
export class Model {
  /**
   * @param {ModelInfo} info
   * @param {Backend} backend
   */
  constructor(info, backend) {
    this.info = info;
    this._backend = backend;
  }

  /**
   * The mean of the probabilities of a recording's windows.
   * @param {Recording} recording
   * @param {object} [options]
   * @param {AbortSignal} [options.signal]
   * @param {(fraction: number) => void} [options.onProgress]
   * @returns {Promise<Float32Array>} (K,)
   */
  async classify(recording, { signal, onProgress } = {}) {
    return this._pass("classify", recording, 0, signal, () => {}, onProgress);
  }

  /**
   * Scores of the successive windows of a recording.
   * @param {Recording} recording
   * @param {object} [options]
   * @param {number|null} [options.hopSeconds] in (0, window]; none: half the window
   * @param {AbortSignal} [options.signal]
   * @param {(scores: WindowScores[]) => void} [options.onScores] those found since the last call
   * @param {(fraction: number) => void} [options.onProgress]
   * @returns {Promise<WindowScores[]>} their stretches tile the recording
   */
  async windows(recording, { hopSeconds, signal, onScores, onProgress } = {}) {
    const all = [];
    const take = (scores) => {
      if (!scores.length) return;
      all.push(...scores);
      onScores?.(scores);
    };
    take(await this._pass("windows", recording, this.hop(hopSeconds), signal, take, onProgress));
    return all;
  }

  /**
   * Listen to the microphone until `stop()` of what is returned.
   * @param {object} [options]
   * @param {number|null} [options.hopSeconds] in (0, window]; none: half the window
   * @param {(scores: WindowScores[]) => void} [options.onScores]
   * @param {(channels: Float32Array[]) => void} [options.onSamples] each block as it was heard,
   *     silence where the device lost some
   * @param {(gap: {at: number, seconds: number}) => void} [options.onGap] sound that has no scores:
   *     the computer was too slow, or the device lost it
   * @param {(message: string) => void} [options.onEnd] the device went away: call `stop()`
   * @returns {Promise<Listening>}
   * @throws {Error} one clear sentence
   */
  async microphone({ hopSeconds, ...hearer } = {}) {
    return Listening.begin(this.info, this._backend, this.hop(hopSeconds), hearer);
  }

  /**
   * @param {number|null} [hopSeconds] in (0, window]; none: half the window
   * @returns {number} samples at the model's rate
   * @throws {RangeError} out of range
   */
  hop(hopSeconds = null) {
    const { window_samples: window, window_seconds: seconds, sample_rate: rate } = this.info;
    const hop = hopSeconds === null ? Math.floor(window / 2) : roundHalfEven(hopSeconds * rate);
    if (!(hop > 0 && hop <= window)) {
      throw new RangeError(`The hop must be above 0 and at most the window of ${seconds} s.`);
    }
    return hop;
  }

  /** Let go of the model's memory. */
  close() {
    this._backend.close();
  }

  async _pass(kind, recording, hop, signal, take, onProgress) {
    signal?.throwIfAborted();
    const { sampleRate, channels } = recording;
    const { length } = channels[0];
    const source = { sampleRate, channels: channels.length, length };
    // Blocks of a window: small enough to see progress, to stop soon and to need little memory.
    const size = Math.max(4096, Math.ceil(this.info.window_seconds * sampleRate));
    const stream = await this._backend.open(kind, source, hop);
    try {
      for (let first = 0; first < length; first += size) {
        const block = channels.map((samples) => samples.slice(first, first + size));
        take(await stream.push(block));
        signal?.throwIfAborted();
        onProgress?.(Math.min(1, (first + size) / length));
      }
      return await stream.finish();
    } catch (error) {
      stream.close();
      throw error;
    }
  }
}

/** The worker that holds the model, and the questions that it has not answered yet. */
class Backend {
  constructor() {
    this._waiting = new Map();
    this._asked = 0;
    this._worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this._worker.onmessage = ({ data: { id, result, error } }) => {
      const asked = this._waiting.get(id);
      if (!asked) return; // failed meanwhile
      const { resolve, reject } = asked;
      this._waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    this._worker.onerror = (event) => {
      event.preventDefault();
      const why = event.message ? ` (${event.message})` : "";
      this._fail(new Error(`The model's program cannot run in this browser${why}.`));
    };
  }

  ask(action, request = {}, transfer = []) {
    if (this._failure) return Promise.reject(this._failure);
    const id = this._asked++;
    return new Promise((resolve, reject) => {
      this._waiting.set(id, { resolve, reject });
      this._worker.postMessage({ id, action, ...request }, transfer);
    });
  }

  async open(kind, source, hop) {
    const stream = this._asked;
    await this.ask("open", { stream, kind, source, hop });
    return {
      push: (block) => {
        const buffers = block.map((samples) => samples.buffer);
        return this.ask("push", { stream, block }, buffers);
      },
      gap: (seconds) => this.ask("gap", { stream, seconds }),
      finish: () => this.ask("finish", { stream }),
      close: () => this.ask("close", { stream }).catch(() => {}),
    };
  }

  close() {
    this._worker.terminate();
    this._fail(new Error("The model was closed."));
  }

  _fail(error) {
    this._failure = error;
    for (const { reject } of this._waiting.values()) reject(error);
    this._waiting.clear();
  }
}
