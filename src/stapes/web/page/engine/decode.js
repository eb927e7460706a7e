/** Recordings in: any format that is WAV or that the browser knows, at the file's own rate. */

import { readHeader } from "./headers.js";
import { isWav, readWav } from "./wav.js";

/** As in stapes.audio: damaged headers and samples lie outside. */
const MIN_SAMPLE_RATE = 100;
const MAX_SAMPLE_RATE = 1_000_000;
const MAX_CHANNELS = 256;
const MAX_AMPLITUDE = 1e12;

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
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, channel) =>
    buffer.getChannelData(channel).slice(),
  );
  return { sampleRate: buffer.sampleRate, channels };
}

function checkValues(samples, sampleRate, name) {
  for (let i = 0; i < samples.length; i++) {
    if (!(Math.abs(samples[i]) <= MAX_AMPLITUDE)) {
      const at = (i / sampleRate).toFixed(3);
      throw new Error(`${name} is damaged: its sample at ${at} s is no finite number.`);
    }
  }
}
