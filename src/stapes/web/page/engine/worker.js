/**
 * The model, in a worker: resampling, windows and network, so that the page stays quick.
 *
 * A request is `{id, action, ...}`, its answer `{id, result}` or `{id, error}`. Requests are answered
 * one after the other.
 */

import * as ort from "../onnxruntime/ort.wasm.bundle.min.mjs";
import { Listener, Mean, Timeline } from "./streams.js";

const RUNTIME = new URL("../onnxruntime/ort-wasm-simd-threaded.wasm.gz", import.meta.url);
const MOST_THREADS = 4;

let info = null;
let session = null;
const streams = new Map();

const actions = {
  async load(request) {
    const [binary, model] = await Promise.all([unpacked(RUNTIME), fetched(request.model)]);
    info = request.info;
    ort.env.logLevel = "error";
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.numThreads = self.crossOriginIsolated
      ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1)
      : 1;
    session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
    });
  },

  async open({ stream, kind, source, hop }) {
    const made = {
      classify: () => new Mean(info, probabilities, source),
      windows: () => new Timeline(info, probabilities, source, hop),
      listen: () => new Listener(info, probabilities, source, hop),
    };
    streams.set(stream, made[kind]());
  },

  push: ({ stream, block }) => streams.get(stream).push(block),

  gap: ({ stream, seconds }) => streams.get(stream).gap(seconds),

  async finish({ stream }) {
    try {
      return await streams.get(stream).finish();
    } finally {
      streams.delete(stream);
    }
  },

  async close({ stream }) {
    streams.delete(stream);
  },
};

/** @type {import("./streams.js").Probabilities} */
async function probabilities(windows) {
  const rows = [];
  for (const samples of windows) {
    const shape = [1, info.channels, info.window_samples];
    const waveform = new ort.Tensor("float32", samples, shape);
    const found = (await session.run({ waveform })).probabilities;
    rows.push(Float32Array.from(found.data));
    found.dispose();
  }
  return rows;
}

let last = Promise.resolve();

self.onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id: data.id, result: await actions[data.action](data) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error.message ?? String(error) });
    }
  });
};

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status}).`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Some servers unpack what ends in .gz on the way: the first bytes tell. */
async function unpacked(url) {
  const content = await fetched(url);
  if (content[0] !== 0x1f || content[1] !== 0x8b) return content;
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
