/** WAV in and out, with libsndfile's scaling: full scale of integers at -1 and 1. */

const PCM = 1;
const FLOAT = 3;
const ALAW = 6;
const ULAW = 7;
const EXTENSIBLE = 0xfffe;

/**
 * @param {ArrayBuffer} content
 * @returns {boolean} whether it begins as WAV files do
 */
export function isWav(content) {
  return ["RIFF", "RF64", "RIFX"].includes(text(content, 0)) && text(content, 8) === "WAVE";
}

/**
 * Decode PCM of 8 to 32 bits, float of 32 or 64, A-law and mu-law, plain or extensible.
 * @param {ArrayBuffer} content
 * @returns {{sampleRate: number, channels: Float32Array[]}}
 * @throws {Error} damaged, or another coding
 */
export function readWav(content) {
  const view = new DataView(content);
  const little = text(content, 0) !== "RIFX";
  let format = null;
  let at = 12;
  let longSize = null; // of the samples in RF64, whose own field holds 2^32 - 1
  while (at + 8 <= content.byteLength) {
    const kind = text(content, at);
    const size = view.getUint32(at + 4, little);
    const begin = at + 8;
    if (kind === "ds64" && begin + 16 <= content.byteLength) {
      longSize = Number(view.getBigUint64(begin + 8, true));
    } else if (kind === "fmt ") {
      if (size < 16 || begin + 16 > content.byteLength) break;
      format = readFormat(view, begin, size, little);
    } else if (kind === "data") {
      if (!format) break;
      const there = content.byteLength - begin;
      // Who writes a header before the length is known claims nothing at all, or as much as there
      // can be.
      const claimed = size === 0xffffffff && longSize !== null ? longSize : size;
      const unknown = claimed === 0 && view.getUint32(4, little) === 8; // an empty RIFF
      const bytes = unknown || claimed > there ? there : claimed;
      return readSamples(content, begin, bytes, format, little);
    }
    at = begin + size + (size % 2);
  }
  throw new Error("is damaged: its WAV header is incomplete.");
}

function readFormat(view, at, size, little) {
  let tag = view.getUint16(at, little);
  const channels = view.getUint16(at + 2, little);
  const sampleRate = view.getUint32(at + 4, little);
  const frame = view.getUint16(at + 12, little);
  const bits = view.getUint16(at + 14, little);
  if (tag === EXTENSIBLE && size >= 26) tag = view.getUint16(at + 24, little);
  if (!channels) throw new Error("is damaged: its header claims no channels.");
  // 24 bits may stand in four bytes.
  const width = tag === PCM && bits === 24 && frame === 4 * channels ? 4 : Math.ceil(bits / 8);
  return { tag, channels, sampleRate, width };
}

function readSamples(content, begin, bytes, { tag, channels, sampleRate, width }, little) {
  const frames = Math.floor(bytes / (width * channels));
  const read = reader(tag, width, new DataView(content, begin), little);
  if (!read) {
    throw new Error(`has a WAV coding that is not read here (format ${tag}, ${8 * width} bit).`);
  }
  const waveform = Array.from({ length: channels }, () => new Float32Array(frames));
  waveform.forEach((samples, channel) => {
    const stride = width * channels;
    let at = width * channel;
    for (let i = 0; i < frames; i++, at += stride) samples[i] = read(at);
  });
  return { sampleRate, channels: waveform };
}

/** @returns {((at: number) => number)|null} */
function reader(tag, width, view, little) {
  if (tag === PCM) {
    switch (width) {
      case 1:
        return (at) => (view.getUint8(at) - 128) / 128;
      case 2:
        return (at) => view.getInt16(at, little) / 32768;
      case 3:
        return little
          ? (at) => (view.getUint16(at, true) + view.getInt8(at + 2) * 65536) / 8388608
          : (at) => (view.getUint16(at + 1, false) + view.getInt8(at) * 65536) / 8388608;
      case 4:
        return (at) => view.getInt32(at, little) / 2147483648;
    }
  }
  if (tag === FLOAT && width === 4) return (at) => view.getFloat32(at, little);
  if (tag === FLOAT && width === 8) return (at) => view.getFloat64(at, little);
  if (tag === ALAW && width === 1) return (at) => aLaw(view.getUint8(at));
  if (tag === ULAW && width === 1) return (at) => muLaw(view.getUint8(at));
  return null;
}

/** ITU-T G.711, A-law. */
function aLaw(code) {
  code ^= 0x55;
  const exponent = (code & 0x70) >> 4;
  const mantissa = ((code & 0x0f) << 4) + 8;
  const size = exponent ? (mantissa + 256) << (exponent - 1) : mantissa;
  return (code & 0x80 ? size : -size) / 32768;
}

/** ITU-T G.711, mu-law. */
function muLaw(code) {
  code = ~code & 0xff;
  const size = ((((code & 0x0f) << 3) + 132) << ((code & 0x70) >> 4)) - 132;
  return (code & 0x80 ? -size : size) / 32768;
}

/**
 * A recording as a WAV file of 32-bit floating point.
 * @param {{sampleRate: number, channels: Float32Array[]}} recording
 * @returns {Blob}
 */
export function toWav({ sampleRate, channels }) {
  const frames = channels[0].length;
  const frame = 4 * channels.length;
  const header = new DataView(new ArrayBuffer(58));
  const write = (at, name) => [...name].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 50 + frames * frame, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 18, true);
  header.setUint16(20, FLOAT, true);
  header.setUint16(22, channels.length, true);
  header.setUint32(24, sampleRate, true);
  header.setUint32(28, sampleRate * frame, true);
  header.setUint16(32, frame, true);
  header.setUint16(34, 32, true);
  write(38, "fact"); // required of all that is not PCM
  header.setUint32(42, 4, true);
  header.setUint32(46, frames, true);
  write(50, "data");
  header.setUint32(54, frames * frame, true);
  const parts = [header];
  const piece = 1 << 16; // frames
  for (let first = 0; first < frames; first += piece) {
    const count = Math.min(piece, frames - first);
    const view = new DataView(new ArrayBuffer(count * frame));
    channels.forEach((samples, channel) => {
      for (let i = 0; i < count; i++) {
        view.setFloat32(i * frame + 4 * channel, samples[first + i], true);
      }
    });
    parts.push(view);
  }
  return new Blob(parts, { type: "audio/wav" });
}

function text(content, at) {
  return String.fromCharCode(...new Uint8Array(content, Math.min(at, content.byteLength)).subarray(0, 4));
}
