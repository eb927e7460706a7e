/** Recordings in: any format that is WAV or that the browser knows, at the file's own rate. */

import { readHeader } from "./headers.js";
import { joined } from "./joined.js";
import { Converter } from "./resample.js";
import { isWav, readWav } from "./wav.js";

/** As in stapes.audio: damaged headers and samples lie outside. */
const MIN_SAMPLE_RATE = 100;
const MAX_SAMPLE_RATE = 1_000_000;
const MAX_CHANNELS = 256;
const MAX_AMPLITUDE = 1e12;

const MOST_MISSING = 4096; // samples: half of the longest block of Vorbis

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
  for (const samples of channels) checkValues(samples, sampleRate, name);
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
  let buffer;
  try {
    buffer = await context.decodeAudioData(content);
  } catch (error) {
    throw new Error(
      `cannot be decoded (${format}): it is damaged, or this browser does not know the format.`,
      { cause: error },
    );
  }
  let channels = Array.from({ length: buffer.numberOfChannels }, (_, channel) =>
    buffer.getChannelData(channel).slice(),
  );
  channels = whole(channels, header.frames ?? 0);
  if (header.bits === 16) channels.forEach(evenScale);
  const { givenRate = sampleRate } = header;
  if (givenRate !== sampleRate) {
    const converter = new Converter(sampleRate, channels.length, givenRate, channels.length);
    const parts = [converter.push(channels), converter.finish()];
    channels = channels.map((_, channel) => joined(parts.map((part) => part[channel])));
  }
  return { sampleRate: givenRate, channels };
}

/** Browsers may lose the last block of Vorbis: of as many samples, silence takes the place. */
function whole(channels, frames) {
  const missing = frames - channels[0].length;
  if (!(missing > 0 && missing <= MOST_MISSING)) return channels;
  return channels.map((samples) => joined([samples, new Float32Array(missing)]));
}

/**
 * Some browsers make 16-bit samples above 0 floating point by 1 / 32767, and those below by 1 / 32768;
 * libsndfile and others take the latter for both. What was done is seen in the samples.
 * @param {Float32Array} samples changed in place
 */
function evenScale(samples) {
  if (samples.every((x) => Number.isInteger(x * 32768))) return;
  const level = (x) => x * (x > 0 ? 32767 : 32768);
  if (!samples.every((x) => Math.abs(level(x) - Math.round(level(x))) < 0.01)) return;
  for (let i = 0; i < samples.length; i++) samples[i] = Math.round(level(samples[i])) / 32768;
}

function checkValues(samples, sampleRate, name) {
  for (let i = 0; i < samples.length; i++) {
    if (!(Math.abs(samples[i]) <= MAX_AMPLITUDE)) {
      const at = (i / sampleRate).toFixed(3);
      throw new Error(`${name} is damaged: its sample at ${at} s is no finite number.`);
    }
  }
}
