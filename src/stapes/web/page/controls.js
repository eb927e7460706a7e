/** Threshold, release, hop and smoothing: sliders with their values and units in words. */

import { readable } from "./format.js";

/**
 * @typedef {{threshold: number, release: number, smoothing: number, hopSeconds: number}} Settings
 *     probabilities in [0, 1], release at most threshold; windows; seconds
 */

/** Hops of a window: half of it, or more often, to see bars move. */
const SHARES = { recording: 2, microphone: 10 };

export class Controls {
  /**
   * @param {HTMLElement} root holds input and output elements named threshold, release, hop, smoothing
   * @param {{events: () => void, hop: () => void}} changed what a change asks for: events out of the
   *     same scores, or new scores
   */
  constructor(root, changed) {
    this._inputs = {
      threshold: input(root, "threshold"),
      release: input(root, "release"),
      hop: input(root, "hop"),
      smoothing: input(root, "smoothing"),
    };
    this._outputs = {
      threshold: output(root, "threshold"),
      release: output(root, "release"),
      hop: output(root, "hop"),
      smoothing: output(root, "smoothing"),
    };
    this._tied = true; // the release goes along with the threshold until it is moved itself
    this._chosen = false; // whether the hop is somebody's wish
    /** @type {"recording" | "microphone"} */
    this._suited = "recording";
    this._windowSeconds = 1;
    const { threshold, release, hop, smoothing } = this._inputs;
    threshold.addEventListener("input", () => {
      if (this._tied || release.valueAsNumber > threshold.valueAsNumber) {
        release.valueAsNumber = threshold.valueAsNumber;
      }
      this._tell();
      changed.events();
    });
    release.addEventListener("input", () => {
      if (release.valueAsNumber > threshold.valueAsNumber) {
        release.valueAsNumber = threshold.valueAsNumber;
      }
      this._tied = release.valueAsNumber === threshold.valueAsNumber;
      this._tell();
      changed.events();
    });
    smoothing.addEventListener("input", () => {
      this._tell();
      changed.events();
    });
    hop.addEventListener("input", () => {
      this._chosen = true;
      this._tell();
    });
    hop.addEventListener("change", () => changed.hop());
  }

  /** @param {{window_seconds: number}} info of the model */
  open(info) {
    const { hop } = this._inputs;
    this._windowSeconds = info.window_seconds;
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5].findLast((s) => s <= info.window_seconds / 50);
    hop.step = hop.min = String(step ?? 0.01);
    hop.max = String(info.window_seconds);
    this.suit("recording");
  }

  /**
   * Set the hop to what suits, unless somebody has chosen one.
   * @param {"recording" | "microphone"} what
   */
  suit(what) {
    this._suited = what;
    if (this._chosen) return;
    this._inputs.hop.value = String(this.hopFor(what)); // the input rounds it to its step
    this._tell();
  }

  /** @type {boolean} whether the hop can be moved */
  set hopEnabled(/** @type {boolean} */ enabled) {
    this._inputs.hop.disabled = !enabled;
  }

  /**
   * The hop that somebody has chosen, or else the one that suits; the slider shows it rounded.
   * @param {"recording" | "microphone"} what
   * @returns {number} seconds
   */
  hopFor(what) {
    return this._chosen ? this._inputs.hop.valueAsNumber : this._windowSeconds / SHARES[what];
  }

  /** @returns {Settings} */
  get settings() {
    const { threshold, release, smoothing } = this._inputs;
    return {
      threshold: threshold.valueAsNumber / 100,
      release: release.valueAsNumber / 100,
      smoothing: smoothing.valueAsNumber,
      hopSeconds: this.hopFor(this._suited),
    };
  }

  _tell() {
    const { threshold, release, smoothing, hopSeconds } = this.settings;
    const percent = (/** @type {number} */ share) => `${Math.round(100 * share)}\u00a0%`;
    this._write("threshold", percent(threshold));
    this._write("release", percent(release));
    this._write("hop", `${trimmed(hopSeconds)}\u00a0s`);
    const windows = smoothing === 1 ? "off" : `${smoothing}\u00a0windows`;
    this._write("smoothing", windows);
  }

  /** @param {"threshold" | "release" | "hop" | "smoothing"} name @param {string} text */
  _write(name, text) {
    this._outputs[name].textContent = text;
    this._inputs[name].setAttribute("aria-valuetext", readable(text));
  }
}

/** @param {number} value */
function trimmed(value) {
  return String(Number(value.toFixed(3)));
}

/** @param {HTMLElement} root @param {string} name */
function input(root, name) {
  return /** @type {HTMLInputElement} */ (root.querySelector(`#${name}`));
}

/** @param {HTMLElement} root @param {string} name */
function output(root, name) {
  return /** @type {HTMLOutputElement} */ (root.querySelector(`output[for=${name}]`));
}
