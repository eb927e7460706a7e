/**
 * An Ogg stream made longer by one packet.
 *
 * Blocks of Vorbis overlap, so that a block is complete with the next one. Some browsers never give
 * the last one where the stream ends within it, which for short sounds is a good part of a window.
 * With the last packet repeated behind it they do. Positions are moved up, so that nothing is cut
 * off; the reader cuts at the position at which the stream had ended.
 *
 * The layout of a page is that of RFC 3533, section 6:
 *
 *     0 "OggS"  4 version  5 flags  6 position  14 stream  18 number  22 checksum  26 n  27 n lengths
 *
 * A packet is cut into pieces of 255 bytes; one shorter than that, which may be 0, is its last.
 */

const POSITION = 6;
const NUMBER = 18;
const CHECKSUM = 22;
const COUNT = 26;
const LENGTHS = 27;
const CONTINUED = 1;
const LAST = 4;
const AHEAD = 1n << 16n; // samples, more than eight of the longest blocks

/**
 * @param {Uint8Array} bytes
 * @returns {ArrayBuffer|null} none: its last page does not hold a whole packet
 */
export function withTail(bytes) {
  const at = lastPage(bytes);
  if (at < 0) return null;
  const page = bytes.subarray(at);
  const lengths = page.subarray(LENGTHS, LENGTHS + page[COUNT]);
  let first = lengths.length - 1; // of the pieces of the last packet
  while (first > 0 && lengths[first - 1] === 255) first--;
  const cut = !lengths.length || lengths[lengths.length - 1] === 255;
  if (cut || (first === 0 && page[5] & CONTINUED)) return null;

  const pieces = lengths.subarray(first);
  const size = pieces.reduce((sum, length) => sum + length, 0);
  const longer = new Uint8Array(bytes.length + LENGTHS + pieces.length + size);
  longer.set(bytes);
  const tail = longer.subarray(bytes.length);
  tail.set(page.subarray(0, COUNT));
  tail[COUNT] = pieces.length;
  tail.set(pieces, LENGTHS);
  tail.set(page.subarray(page.length - size), LENGTHS + pieces.length);

  const view = new DataView(page.buffer, page.byteOffset);
  const position = view.getBigInt64(POSITION, true);
  const number = view.getUint32(NUMBER, true);
  renew(longer.subarray(at, bytes.length), page[5] & ~LAST, position + AHEAD, number);
  renew(tail, LAST, position + 2n * AHEAD, number + 1);
  return longer.buffer;
}

/** Where the page begins that ends with the stream; -1: none does. */
function lastPage(bytes) {
  for (let at = bytes.length - LENGTHS; at >= 0 && at >= bytes.length - (1 << 17); at--) {
    if (String.fromCharCode(...bytes.subarray(at, at + 4)) !== "OggS") continue;
    const body = at + LENGTHS + bytes[at + COUNT];
    const lengths = bytes.subarray(at + LENGTHS, body);
    if (lengths.reduce((sum, length) => sum + length, body) === bytes.length) return at;
  }
  return -1;
}

function renew(page, flags, position, number) {
  const view = new DataView(page.buffer, page.byteOffset);
  page[5] = flags;
  view.setBigInt64(POSITION, position, true);
  view.setUint32(NUMBER, number, true);
  view.setUint32(CHECKSUM, 0, true);
  view.setUint32(CHECKSUM, checksum(page), true);
}

/** CRC-32 of polynomial 04C11DB7, highest bit first, from 0. */
function checksum(bytes) {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte << 24;
    for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  }
  return crc >>> 0;
}
