/**
 * Sums of products, four at once: resampling is little else, and this is several times as fast as
 * JavaScript. The function is assembled here because the page is not built by anything.
 */

const [I32, F32, V128, VOID] = [0x7f, 0x7d, 0x7b, 0x40];
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const tee = (local) => [0x22, local];
const ADDRESS_ADD = 0x6a;
const BELOW = 0x49;
const F32_ADD = 0x92;
const END = 0x0b;
const load = (offset) => [0xfd, 0x00, 2, offset]; // four floats at an address, a multiple of 2^2 bytes
const MUL = [0xfd, 0xe6, 0x01];
const ADD = [0xfd, 0xe4, 0x01];
const lane = (i) => [0xfd, 0x1f, i];

// dot(x, h, end): the addresses of both arrays, and that behind the second; multiples of 8 floats.
const [X, H, BEHIND, SUM, OTHER] = [0, 1, 2, 3, 4];
const STEP = 32; // bytes
const step = [0x41, STEP, ADDRESS_ADD];
const eight = [
  ...[...get(SUM), ...get(X), ...load(0), ...get(H), ...load(0), ...MUL, ...ADD, ...set(SUM)],
  ...[...get(OTHER), ...get(X), ...load(16), ...get(H), ...load(16), ...MUL, ...ADD, ...set(OTHER)],
];
const body = [
  ...[1, 2, V128], // two more locals, 0 at first
  ...[0x03, VOID, ...eight, ...get(X), ...step, ...set(X)],
  ...[...get(H), ...step, ...tee(H), ...get(BEHIND), BELOW, 0x0d, 0, END], // again if below
  ...[...get(SUM), ...get(OTHER), ...ADD, ...tee(SUM), ...lane(0), ...get(SUM), ...lane(1), F32_ADD],
  ...[...get(SUM), ...lane(2), ...get(SUM), ...lane(3), F32_ADD, F32_ADD, END],
];

const text = (name) => [name.length, ...[...name].map((letter) => letter.charCodeAt(0))];
const number = (n) => (n < 128 ? [n] : [(n & 127) | 128, n >> 7]); // LEB128
const section = (id, content) => [id, ...number(content.length), ...content];
const program = Uint8Array.from([
  ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...section(1, [1, 0x60, 3, I32, I32, I32, 1, F32]),
  ...section(3, [1, 0]),
  ...section(5, [1, 0, 1]), // a memory of one page
  ...section(7, [2, ...text("memory"), 2, 0, ...text("dot"), 0, 0]),
  ...section(10, [1, ...number(body.length), ...body]),
]);

const PAGE = 65536; // bytes

let module = null;

/**
 * Sums of products of a changing array with rows of a fixed one.
 * @param {Float32Array} table rows of `taps` numbers
 * @param {number} taps a multiple of 8
 * @param {number} length of the changing array
 * @returns {{held: Float32Array, dot: (first: number, row: number) => number}} the changing array, and
 *     the sum over `taps` numbers of it from `first` with a row
 */
export function products(table, taps, length) {
  module ??= new WebAssembly.Module(program);
  const { memory, dot } = new WebAssembly.Instance(module).exports;
  memory.grow(Math.ceil((4 * (table.length + length)) / PAGE));
  new Float32Array(memory.buffer, 0, table.length).set(table);
  const held = new Float32Array(memory.buffer, 4 * table.length, length);
  const bytes = 4 * taps;
  return {
    held,
    dot: (first, row) => dot(held.byteOffset + 4 * first, row * bytes, (row + 1) * bytes),
  };
}
