/** The picture: columns are computed as they come into view, kept in tiles, and coloured when drawn. */

import { fit } from "./seconds.js";
import { LOWEST_DB, Spectrum } from "./spectrum.js";

/** @typedef {import("./samples.js").Samples} Samples */
/** @typedef {{from: number, pixelsPerSecond: number, width: number, height: number}} View */
/**
 * @typedef {{
 *   levels: Uint8Array, filled: number, coloured: number, canvas: HTMLCanvasElement,
 * }} Tile levels (columns, rows); columns filled and coloured so far
 */

const TILE = 128; // columns
const MOST_TILES = 96;
const RANGE_DB = 70; // from the softest colour to the loudest
const LEAST_CEILING_DB = -45; // what is softer than this does not get the loudest colour
const BUDGET_MS = 8; // of computing in one frame: the page stays smooth

/** Draws a stretch of sound on a canvas, a few milliseconds at a time. */
export class Spectrogram {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this._canvas = canvas;
    /** @type {Samples | null} */
    this._samples = null;
    this._highest = 1;
    /** @type {Uint32Array} */
    this._colours = new Uint32Array(256);
    /** @type {Map<number, Tile>} */
    this._tiles = new Map();
    /** @type {Spectrum | null} */
    this._spectrum = null;
    this._columnsPerSecond = 0;
    this._ceiling = 0;
    /** @type {{canvas: HTMLCanvasElement, from: number, columnsPerSecond: number} | null} */
    this._before = null;
    this._from = 0;
  }

  /**
   * @param {Samples | null} samples to show; none: nothing
   * @param {number} highest Hz at the top
   */
  show(samples, highest) {
    this._samples = samples;
    this._highest = highest;
    this._ceiling = levelOf(LEAST_CEILING_DB);
    this._before = null;
    this._forget();
  }

  /** @param {Uint32Array} colours (256,) */
  recolour(colours) {
    this._colours = colours;
    for (const tile of this._tiles.values()) tile.coloured = 0;
    this._before = null;
  }

  /**
   * Draw the stretch in view as far as it is known.
   * @param {View} view seconds at the left edge; pixels
   * @returns {boolean} whether there is more to compute: draw again in the next frame
   */
  draw(view) {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const columnsPerSecond = view.pixelsPerSecond * ratio;
    const rows = Math.round(view.height * ratio);
    const context = this._canvas.getContext("2d");
    if (!context || view.width < 1) return false;
    if (columnsPerSecond !== this._columnsPerSecond || rows !== this._spectrum?.rows) {
      this._keepPicture();
      this._forget();
      this._columnsPerSecond = columnsPerSecond;
      if (this._samples) this._spectrum = new Spectrum(this._samples, this._highest, rows);
    }
    fit(this._canvas, view.width, view.height, ratio);
    context.imageSmoothingEnabled = true;
    context.clearRect(0, 0, this._canvas.width, this._canvas.height);
    this._from = view.from;
    if (!this._samples || !this._spectrum) return false;
    const { length, rate } = this._samples;
    const first = Math.round(view.from * columnsPerSecond);
    const total = Math.ceil((length / rate) * columnsPerSecond);
    const last = Math.min(first + this._canvas.width, total);
    const deadline = performance.now() + BUDGET_MS;
    let complete = true;
    for (let at = Math.floor(first / TILE); at * TILE < last; at++) {
      if (!this._fill(at, Math.min(TILE, total - at * TILE), deadline)) complete = false;
    }
    if (this._before && !complete) this._drawBefore(context);
    if (complete) this._before = null;
    for (let at = Math.floor(first / TILE); at * TILE < last; at++) {
      const tile = this._tiles.get(at);
      if (!tile?.filled) continue;
      this._colour(tile);
      const { filled } = tile;
      context.drawImage(tile.canvas, 0, 0, filled, rows, at * TILE - first, 0, filled, rows);
    }
    return !complete;
  }

  /**
   * Compute a tile's columns, as far as there is time and sound.
   * @param {number} at number of the tile
   * @param {number} columns that it has so far
   * @param {number} deadline
   * @returns {boolean} whether nothing is left to compute now
   */
  _fill(at, columns, deadline) {
    const spectrum = /** @type {Spectrum} */ (this._spectrum);
    const samples = /** @type {Samples} */ (this._samples);
    const tile = this._tile(at, spectrum.rows);
    const seconds = 1 / this._columnsPerSecond;
    while (tile.filled < columns) {
      const middle = (at * TILE + tile.filled + 0.5) * seconds;
      const reach = (middle + seconds / 2) * samples.rate + spectrum.reach;
      if (!samples.complete && reach > samples.length) return true; // until more has come
      if (performance.now() > deadline) return false;
      const from = tile.filled * spectrum.rows;
      const loudest = spectrum.column(
        middle,
        seconds,
        tile.levels.subarray(from, from + spectrum.rows),
      );
      if (loudest > this._ceiling) {
        this._ceiling = loudest;
        for (const other of this._tiles.values()) other.coloured = 0;
      }
      tile.filled++;
    }
    return true;
  }

  /**
   * @param {number} at
   * @param {number} rows
   */
  _tile(at, rows) {
    let tile = this._tiles.get(at);
    if (tile) {
      this._tiles.delete(at); // and back to the end: the first one is the longest unused
    } else {
      const canvas = document.createElement("canvas");
      canvas.width = TILE;
      canvas.height = rows;
      tile = { levels: new Uint8Array(TILE * rows), filled: 0, coloured: 0, canvas };
      if (this._tiles.size >= MOST_TILES) {
        this._tiles.delete(/** @type {number} */ (this._tiles.keys().next().value));
      }
    }
    this._tiles.set(at, tile);
    return tile;
  }

  /** @param {Tile} tile */
  _colour(tile) {
    const columns = tile.filled - tile.coloured;
    if (!columns) return;
    const rows = tile.canvas.height;
    const context = tile.canvas.getContext("2d");
    const image = new ImageData(columns, rows);
    const words = new Uint32Array(image.data.buffer);
    const floor = this._ceiling - 2 * RANGE_DB;
    const gain = 255 / (2 * RANGE_DB);
    for (let x = 0; x < columns; x++) {
      const from = (tile.coloured + x) * rows;
      for (let y = 0; y < rows; y++) {
        const shade = Math.round((tile.levels[from + y] - floor) * gain);
        words[y * columns + x] = this._colours[Math.min(255, Math.max(0, shade))];
      }
    }
    context?.putImageData(image, tile.coloured, 0);
    tile.coloured = tile.filled;
  }

  /** Keep what is seen, to be stretched until its new scale is computed. */
  _keepPicture() {
    if (!this._tiles.size || !this._columnsPerSecond) return;
    const canvas = document.createElement("canvas");
    canvas.width = this._canvas.width;
    canvas.height = this._canvas.height;
    canvas.getContext("2d")?.drawImage(this._canvas, 0, 0);
    this._before = { canvas, from: this._from, columnsPerSecond: this._columnsPerSecond };
  }

  /** @param {CanvasRenderingContext2D} context */
  _drawBefore(context) {
    const before = /** @type {NonNullable<typeof this._before>} */ (this._before);
    const scale = this._columnsPerSecond / before.columnsPerSecond;
    const x = (before.from - this._from) * this._columnsPerSecond;
    context.drawImage(before.canvas, x, 0, before.canvas.width * scale, this._canvas.height);
  }

  _forget() {
    this._tiles.clear();
    this._spectrum = null;
    this._columnsPerSecond = 0;
  }
}

/** @param {number} decibels */
function levelOf(decibels) {
  return 2 * (decibels - LOWEST_DB);
}
