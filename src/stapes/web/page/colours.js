/**
 * Colours of the spectrogram: even steps of lightness from soft to loud.
 *
 * Colours are chosen in Oklab (Bjorn Ottosson: A perceptual color space for image processing, 2020),
 * in which lightness grows linearly along the map while the hue turns and the colourfulness swells
 * and fades. A dark page gets a map from dark to light and a light page one from light to dark, so
 * that silence is the page's own background.
 */

const MAPS = {
  dark: { lightness: [0.16, 0.96], hue: [292, 98], chroma: [0.012, 0.15, 0.1] },
  light: { lightness: [0.985, 0.2], hue: [150, 300], chroma: [0.004, 0.12, 0.1] },
};

/**
 * 256 colours as little-endian RGBA words, for a Uint32Array over ImageData.
 * @param {"dark" | "light"} scheme of the page
 * @returns {Uint32Array} (256,) soft to loud
 */
export function colourMap(scheme) {
  const { lightness, hue, chroma } = MAPS[scheme];
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const t = i / 255;
    const [r, g, b] = inGamut(
      mix(lightness[0], lightness[1], t),
      t < 0.5 ? mix(chroma[0], chroma[1], 2 * t) : mix(chroma[1], chroma[2], 2 * t - 1),
      mix(hue[0], hue[1], t),
    );
    colours[i] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  }
  return colours;
}

/**
 * The colour nearest in chroma that a screen can show: lightness and hue are kept.
 * @param {number} lightness in [0, 1]
 * @param {number} chroma
 * @param {number} hue degrees
 * @returns {number[]} sRGB, 0 to 255
 */
function inGamut(lightness, chroma, hue) {
  const angle = (hue * Math.PI) / 180;
  let rgb = [0, 0, 0];
  for (let c = chroma; c >= 0; c -= 0.002) {
    rgb = linear(lightness, c * Math.cos(angle), c * Math.sin(angle));
    if (rgb.every((x) => x >= -1e-4 && x <= 1.0001)) break;
  }
  return rgb.map((x) => Math.round(255 * encoded(Math.min(1, Math.max(0, x)))));
}

/** Oklab to linear sRGB, with Ottosson's matrices. */
function linear(/** @type {number} */ L, /** @type {number} */ a, /** @type {number} */ b) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

/** The transfer curve of sRGB (IEC 61966-2-1). */
function encoded(/** @type {number} */ x) {
  return x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055;
}

/** @param {number} from @param {number} to @param {number} t */
function mix(from, to, t) {
  return from + (to - from) * t;
}
