/** The time axis: ticks at round moments, drawn for the stretch that is in view. */

const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600];

/**
 * Ticks of a stretch of time, labelled ones as near to each other as they may be.
 * @param {number} from seconds
 * @param {number} to seconds
 * @param {number} pixelsPerSecond
 * @param {number} least pixels between two labels
 * @returns {{seconds: number, label: string}[]}
 */
export function timeTicks(from, to, pixelsPerSecond, least = 72) {
  const step = STEPS.find((s) => s * pixelsPerSecond >= least) ?? 7200;
  const ticks = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + 1e-9; i++) {
    ticks.push({ seconds: i * step, label: label(i * step, step) });
  }
  return ticks;
}

/**
 * @param {number} seconds
 * @param {number} step seconds between two labels
 */
function label(seconds, step) {
  const decimals = step < 0.1 ? 2 : step < 1 ? 1 : 0;
  if (seconds < 60 - 1e-9) return `${seconds.toFixed(decimals)} s`;
  const hours = Math.floor((seconds + 1e-9) / 3600);
  const minutes = Math.floor((seconds + 1e-9 - 3600 * hours) / 60);
  const rest = Math.max(0, seconds - 3600 * hours - 60 * minutes).toFixed(decimals);
  const padded = rest.padStart(decimals ? decimals + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${padded}` : `${minutes}:${padded}`;
}

/**
 * Draw the axis on a canvas that covers the stretch in view.
 * @param {HTMLCanvasElement} canvas
 * @param {{from: number, pixelsPerSecond: number, width: number, height: number, until: number}} view
 *     seconds at the left edge; pixels; the last second of the axis
 */
export function drawTimeAxis(canvas, view) {
  const ratio = window.devicePixelRatio || 1;
  fit(canvas, view.width, view.height, ratio);
  const context = canvas.getContext("2d");
  if (!context) return;
  const style = getComputedStyle(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, view.width, view.height);
  context.fillStyle = context.strokeStyle = style.color;
  context.font = `${style.fontSize} ${style.fontFamily}`;
  context.textBaseline = "top";
  if (!view.until) return;
  const to = Math.min(view.until, view.from + view.width / view.pixelsPerSecond);
  for (const tick of timeTicks(view.from, to, view.pixelsPerSecond)) {
    const x = (tick.seconds - view.from) * view.pixelsPerSecond;
    context.fillRect(Math.min(view.width - 1, Math.max(0, Math.round(x))), 0, 1, 5);
    // The first and the last label stay inside the canvas.
    const half = context.measureText(tick.label).width / 2;
    const at = Math.min(view.width - half, Math.max(half, x));
    if (Math.abs(at - x) > half + 1) continue;
    context.fillText(tick.label, at - half, 8);
  }
}

/**
 * Give a canvas the size it is seen at, in device pixels; what was drawn is lost if it changes.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width pixels
 * @param {number} height pixels
 * @param {number} ratio device pixels per pixel
 */
export function fit(canvas, width, height, ratio) {
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
}
