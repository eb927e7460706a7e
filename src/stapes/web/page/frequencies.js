/**
 * The frequency axis: mel, on which equal distances sound about equally far apart.
 *
 * mel(f) = 1127 ln(1 + f / 700 Hz) (O'Shaughnessy: Speech communication, 1987); nearly linear up to
 * 700 Hz, logarithmic above.
 */

/** @param {number} hertz */
export function mel(hertz) {
  return 1127 * Math.log1p(hertz / 700);
}

/** @param {number} mels */
export function hertz(mels) {
  return 700 * Math.expm1(mels / 1127);
}

const ROUND = [100, 200, 500, 1000, 2000, 5000, 10000, 20000];

/**
 * Ticks at round frequencies.
 * @param {number} highest Hz at the top of the axis
 * @param {number} height of the axis in pixels
 * @param {number} least distance of two ticks in pixels
 * @returns {{hertz: number, label: string, fromTop: number}[]} upwards; fromTop in pixels
 */
export function frequencyTicks(highest, height, least = 18) {
  /** @type {{hertz: number, label: string, fromTop: number}[]} */
  const ticks = [];
  let last = Infinity;
  for (const f of ROUND) {
    const fromTop = height * (1 - mel(f) / mel(highest));
    if (f >= highest || fromTop < least / 4 || last - fromTop < least) continue;
    ticks.push({ hertz: f, label: f < 1000 ? `${f} Hz` : `${f / 1000} kHz`, fromTop });
    last = fromTop;
  }
  return ticks;
}
