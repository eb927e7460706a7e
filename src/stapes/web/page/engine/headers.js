/**
 * What a compressed recording's own header states.
 *
 * A browser decodes to the rate of its audio context, resampling where it must. Asked for the file's
 * own rate, it gives what its decoder gave.
 *
 * @typedef {object} Header
 * @property {string} format for messages
 * @property {number|null} sampleRate Hz at which the coding runs; none: it does not say
 * @property {number} [givenRate] Hz at which libsndfile decodes it, where that is another
 * @property {number} [frames] samples of a channel
 * @property {number} [bits] of a sample, where there is no loss
 */

/**
 * @param {ArrayBuffer} content
 * @returns {Header|null} none: not a format known here
 */
export function readHeader(content) {
  const bytes = new Uint8Array(content);
  const found =
    flac(bytes, 0) ?? ogg(bytes) ?? mp4(bytes) ?? webm(bytes) ?? mpeg(bytes, endOfTags(bytes));
  return found && { ...found, sampleRate: found.sampleRate || null };
}

function flac(bytes, at) {
  if (!has(bytes, at, "fLaC") || bytes.length < at + 26) return null;
  // STREAMINFO comes first: after 4 bytes of its header and 10 of block and frame sizes there are 20
  // bits of rate, 3 of channels, 5 of sample size, 36 of length; each number less one but rate, length.
  const [a, b, c, d] = bytes.subarray(at + 18, at + 22);
  const frames = (d & 15) * 2 ** 32 + new DataView(bytes.buffer).getUint32(at + 22);
  const bits = (((c & 1) << 4) | (d >> 4)) + 1;
  return { format: "FLAC", sampleRate: (a << 12) | (b << 4) | (c >> 4), frames, bits };
}

const OPUS_RATES = [8000, 12000, 16000, 24000, 48000];

function ogg(bytes) {
  if (!has(bytes, 0, "OggS") || bytes.length < 27) return null;
  const packet = 27 + bytes[26];
  const view = new DataView(bytes.buffer);
  const last = lastGranule(view);
  if (has(bytes, packet, "\x01vorbis") && bytes.length >= packet + 16) {
    return { format: "Ogg Vorbis", sampleRate: view.getUint32(packet + 12, true), frames: last };
  }
  if (has(bytes, packet, "OpusHead") && bytes.length >= packet + 16) {
    // Opus runs at 48 kHz. libopus can give fewer, and libsndfile asks it for the rate of the
    // recording before it was encoded, where that is one of its rates.
    const before = view.getUint32(packet + 12, true);
    const givenRate = OPUS_RATES.includes(before) ? before : 48000;
    const frames = last - view.getUint16(packet + 10, true);
    return { format: "Opus", sampleRate: 48000, givenRate, frames };
  }
  if (has(bytes, packet, "\x7fFLAC")) {
    return { format: "Ogg FLAC", sampleRate: null, ...flac(bytes, packet + 9) };
  }
  return { format: "Ogg", sampleRate: null };
}

/** The position at which an Ogg stream ends, which its last page says; 0 where there is none. */
function lastGranule(view) {
  const bytes = new Uint8Array(view.buffer);
  for (let at = bytes.length - 27; at >= Math.max(0, bytes.length - (1 << 17)); at--) {
    if (bytes[at] !== 0x4f || !has(bytes, at, "OggS")) continue;
    // Of another stream, in a chain of them, it says nothing about the whole.
    const same = view.getUint32(at + 14, true) === view.getUint32(14, true);
    const granule = view.getBigInt64(at + 6, true);
    return same && granule > 0n ? Number(granule) : 0;
  }
  return 0;
}

/** The first audio track's sample description: moov / trak / mdia / minf / stbl / stsd. */
function mp4(bytes) {
  if (!has(bytes, 4, "ftyp")) return null;
  const view = new DataView(bytes.buffer);
  const found = { format: "MP4", sampleRate: null };
  const containers = ["moov", "trak", "mdia", "minf", "stbl"];
  const search = (begin, end) => {
    for (let at = begin; at + 8 <= end && found.sampleRate === null; ) {
      let size = view.getUint32(at);
      let header = 8;
      if (size === 1 && at + 16 <= end) {
        size = Number(view.getBigUint64(at + 8));
        header = 16;
      } else if (size === 0) {
        size = end - at;
      }
      if (size < header) return;
      const stop = Math.min(end, at + size);
      if (containers.some((name) => has(bytes, at + 4, name))) search(at + header, stop);
      if (has(bytes, at + 4, "stsd") && at + header + 40 <= stop) {
        const entry = at + header + 8;
        const audio = ["mp4a", "alac", "fLaC", "Opus", "ac-3"];
        if (audio.some((name) => has(bytes, entry + 4, name)) && entry + 36 <= stop) {
          found.sampleRate = view.getUint16(entry + 32); // the whole part of 16.16
        }
      }
      at += size;
    }
  };
  search(0, bytes.length);
  return found;
}

/** SamplingFrequency (B5) within the first bytes of WebM or Matroska: a float of 4 or 8 bytes. */
function webm(bytes) {
  if (!(bytes[0] === 0x1a && bytes[1] === 0x45 && bytes[2] === 0xdf && bytes[3] === 0xa3)) {
    return null;
  }
  const view = new DataView(bytes.buffer);
  for (let at = 4; at + 10 < Math.min(bytes.length, 1 << 14); at++) {
    if (bytes[at] !== 0xb5) continue;
    let rate = 0;
    if (bytes[at + 1] === 0x84) rate = view.getFloat32(at + 2);
    if (bytes[at + 1] === 0x88) rate = view.getFloat64(at + 2);
    if (rate >= 1000 && rate <= 768000 && Number.isInteger(rate)) {
      return { format: "WebM", sampleRate: rate };
    }
  }
  return { format: "WebM", sampleRate: null };
}

/** Where ID3v2 tags end. */
function endOfTags(bytes) {
  let at = 0;
  while (has(bytes, at, "ID3") && at + 10 <= bytes.length) {
    const size = bytes.subarray(at + 6, at + 10).reduce((sum, byte) => sum * 128 + (byte & 127), 0);
    at += 10 + size + (bytes[at + 5] & 0x10 ? 10 : 0);
  }
  return at;
}

const MPEG_RATES = [44100, 48000, 32000];
const AAC_RATES = [
  96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350,
];
const BITRATES = {
  // kbit/s of MPEG 1 layers 1 to 3, then of MPEG 2 and 2.5: ISO/IEC 11172-3, 13818-3
  11: [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
  12: [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
  13: [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
  21: [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
  22: [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
};
BITRATES[23] = BITRATES[22];

/** The first MPEG audio frame that another one follows. */
function mpeg(bytes, first) {
  const end = Math.min(bytes.length - 4, first + (1 << 16)); // junk before it, if not too much
  for (let at = first; at <= end; at++) {
    if (bytes[at] !== 0xff || (bytes[at + 1] & 0xe0) !== 0xe0) continue;
    const frame = adts(bytes, at) ?? mpegFrame(bytes, at);
    if (!frame) continue;
    const next = at + frame.bytes;
    const follows = bytes[next] === 0xff && (bytes[next + 1] & 0xe0) === 0xe0;
    if (follows || next === bytes.length || next === bytes.length - 1) return frame;
  }
  return null;
}

function mpegFrame(bytes, at) {
  const version = (bytes[at + 1] >> 3) & 3; // 0: 2.5, 2: 2, 3: 1
  const layer = 4 - ((bytes[at + 1] >> 1) & 3);
  const bitrate = bytes[at + 2] >> 4;
  const rate = (bytes[at + 2] >> 2) & 3;
  if (version === 1 || layer === 4 || bitrate === 0 || bitrate === 15 || rate === 3) return null;
  const sampleRate = MPEG_RATES[rate] / { 3: 1, 2: 2, 0: 4 }[version];
  const kbits = BITRATES[(version === 3 ? 10 : 20) + layer][bitrate - 1];
  const padding = (bytes[at + 2] >> 1) & 1;
  let size;
  if (layer === 1) size = 4 * (Math.floor((12000 * kbits) / sampleRate) + padding);
  else {
    const slots = layer === 3 && version !== 3 ? 72000 : 144000;
    size = Math.floor((slots * kbits) / sampleRate) + padding;
  }
  return { format: `MP${layer}`, sampleRate, bytes: size };
}

function adts(bytes, at) {
  if ((bytes[at + 1] & 0xf6) !== 0xf0 || at + 7 > bytes.length) return null;
  const sampleRate = AAC_RATES[(bytes[at + 2] >> 2) & 15];
  const size = ((bytes[at + 3] & 3) << 11) | (bytes[at + 4] << 3) | (bytes[at + 5] >> 5);
  return sampleRate && size > 7 ? { format: "AAC", sampleRate, bytes: size } : null;
}

function has(bytes, at, text) {
  if (at + text.length > bytes.length) return false;
  for (let i = 0; i < text.length; i++) if (bytes[at + i] !== text.charCodeAt(i)) return false;
  return true;
}
