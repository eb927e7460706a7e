/** Recordings in: any format that is WAV or that the browser knows, at the file's own rate. */

import { readHeader } from "./headers.js";
import { joined } from "./joined.js";
import { withTail } from "./ogg-tail.js";
import { Converter } from "./resample.js";
import { isWav, readWav } from "./wav.js";

/** As in stapes.audio: damaged headers and samples lie outside. */
const MIN_SAMPLE_RATE = 100;
const MAX_SAMPLE_RATE = 1_000_000;
const MAX_CHANNELS = 256;
const MAX_AMPLITUDE = 1e12;
const PIECE = 2 ** 22; // samples between two pauses: some 50 ms

/**
 * Decode a recording, by its content alone.
 * @param {Blob} file its `name`, if it has one, is the recording's
 * @returns {Promise<import("./engine.js").Recording>}
 * @throws {Error} one clear sentence
 */
export async function decode(file) {
  const name = file.name ?? "recording";
  const content = await bytesOf(file, name);
  if (!content.byteLength) throw new Error(`${name} is empty (0 bytes).`);
  let found;
  try {
    found = isWav(content) ? readWav(content) : await decodeInBrowser(content);
  } catch (error) {
    throw new Error(`${name} ${error.message}`, { cause: error });
  }
  const { sampleRate, channels } = found;
  if (!(sampleRate >= MIN_SAMPLE_RATE && sampleRate <= MAX_SAMPLE_RATE)) {
    throw new Error(`${name} is damaged: its header claims a sample rate of ${sampleRate} Hz.`);
  }
  if (channels.length > MAX_CHANNELS) {
    throw new Error(`${name} is damaged: its header claims ${channels.length} channels.`);
  }
  if (!channels[0].length) throw new Error(`${name} holds no samples.`);
  for (const samples of channels) await checkValues(samples, sampleRate, name);
  return { name, sampleRate, channels, duration: channels[0].length / sampleRate };
}

async function bytesOf(file, name) {
  try {
    return await file.arrayBuffer();
  } catch (error) {
    throw new Error(`${name} cannot be read (${error.message}).`, { cause: error });
  }
}

async function decodeInBrowser(content) {
  const header = readHeader(content);
  if (!header) throw new Error("is not audio of a known format; convert it to WAV or FLAC.");
  const { format } = header;
  // Where the header does not say the rate, that of most video is as good as any.
  const sampleRate = header.sampleRate ?? 48000;
  let context;
  try {
    context = new OfflineAudioContext(1, 1, sampleRate);
  } catch {
    throw new Error(`has a sample rate of ${sampleRate} Hz, which this browser cannot decode.`);
  }
  let channels = header.format === "Ogg Vorbis" && (await wholeVorbis(context, content, header.frames));
  try {
    channels ||= channelsOf(await context.decodeAudioData(content));
  } catch (error) {
    throw new Error(
      `cannot be decoded (${format}): it is damaged, or this browser does not know the format.`,
      { cause: error },
    );
  }
  if (header.bits === 16) for (const samples of channels) await evenScale(samples);
  const { givenRate = sampleRate } = header;
  if (givenRate !== sampleRate) {
    const converter = new Converter(sampleRate, channels.length, givenRate, channels.length);
    const parts = [converter.push(channels), converter.finish()];
    channels = channels.map((_, channel) => joined(parts.map((part) => part[channel])));
  }
  return { sampleRate: givenRate, channels };
}

function channelsOf(buffer) {
  return Array.from({ length: buffer.numberOfChannels }, (_, channel) =>
    buffer.getChannelData(channel),
  );
}

/**
 * Vorbis with its last block (see ogg-tail.js), cut where the stream says that it ends; null where
 * that does not tell the length, as in a stream that was cut out of a longer one.
 */
async function wholeVorbis(context, content, frames) {
  const longer = frames > 0 ? withTail(new Uint8Array(content)) : null;
  try {
    const channels = longer && channelsOf(await context.decodeAudioData(longer));
    if (!channels || channels[0].length < frames) return null;
    return channels.map((samples) => samples.subarray(0, frames));
  } catch {
    return null;
  }
}

/**
 * Some browsers make 16-bit samples above 0 floating point by 1 / 32767, and those below by 1 / 32768;
 * libsndfile and others take the latter for both. What was done is seen in the samples.
 * @param {Float32Array} samples changed in place
 */
async function evenScale(samples) {
  const even = await inPieces(samples, (piece) => {
    for (let i = 0; i < piece.length; i++) if (!Number.isInteger(piece[i] * 32768)) return false;
    return true;
  });
  if (even) return;
  const uneven = await inPieces(samples, (piece) => {
    for (let i = 0; i < piece.length; i++) {
      const level = piece[i] * (piece[i] > 0 ? 32767 : 32768);
      if (!(Math.abs(level - Math.round(level)) < 0.01)) return false;
    }
    return true;
  });
  if (!uneven) return;
  await inPieces(samples, (piece) => {
    for (let i = 0; i < piece.length; i++) {
      piece[i] = Math.round(piece[i] * (piece[i] > 0 ? 32767 : 32768)) / 32768;
    }
    return true;
  });
}

/**
 * Go through a recording without keeping the page from answering: an hour has 159 million samples.
 * @param {Float32Array} samples
 * @param {(piece: Float32Array, first: number) => boolean} work false: enough
 * @returns {Promise<boolean>} whether all pieces were worked on
 */
async function inPieces(samples, work) {
  for (let first = 0; first < samples.length; first += PIECE) {
    if (first) await new Promise((resolve) => setTimeout(resolve));
    if (!work(samples.subarray(first, first + PIECE), first)) return false;
  }
  return true;
}

async function checkValues(samples, sampleRate, name) {
  await inPieces(samples, (piece, first) => {
    for (let i = 0; i < piece.length; i++) {
      if (Math.abs(piece[i]) <= MAX_AMPLITUDE) continue;
      const at = ((first + i) / sampleRate).toFixed(3);
      throw new Error(`${name} is damaged: its sample at ${at} s is no finite number.`);
    }
    return true;
  });
}
