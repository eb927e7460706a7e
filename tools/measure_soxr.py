"""Measure soxr's filters for the browser's engine: python tools/measure_soxr.py

Writes src/stapes/web/page/engine/soxr.js. Of each ratio of usual sample rates the impulse response
of soxr's HQ is measured at many places between two samples, and fitted by

    g(t) = sum over j of d[j] (k(t - j / 2) + k(t + j / 2)) / 2,    t in samples of the lower rate,
    k(t) = c sinc(c t) I0(b sqrt(1 - (t / h)^2)) / I0(b),    |t| < h,

a sinc under a Kaiser window, whose response d bends a little: soxr interpolates with a second,
short filter where the ratio is not simple, and that one falls by 0.01 dB within the pass band.
Needs scipy.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import i0

FROM = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
TO = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000)
OUT = Path(__file__).resolve().parent.parent / "src" / "stapes" / "web" / "page" / "engine"
CUTOFF = 0.9568718  # the largest value of the response, where the ratio is simple
BENDS = 7
PLACES = 12  # of the impulse between two output samples
REACH = 150  # samples of the lower rate

Array = NDArray[np.float64]


def main() -> None:
    ratios = sorted(
        {(a // math.gcd(a, b), b // math.gcd(a, b)) for a in FROM for b in TO if a != b}
    )
    lines, worst = [], -math.inf
    for step, phases in ratios:
        t, g = response(step, phases)
        simple = fit(t, g, 1)
        found = simple if simple[1] < -130 else min(simple, fit(t, g, BENDS), key=lambda x: x[1])
        (beta, half, bends), residual = found
        worst = max(worst, residual)
        numbers = ", ".join(f"{x:.7g}" for x in bends)
        lines.append(f'  "{step}/{phases}": [{beta:.5f}, {half:.4f}, [{numbers}]],')
        sys.stdout.write(f"{lines[-1]}  {residual:.1f} dB\n")
    text = (
        "// Written by tools/measure_soxr.py, which says what the numbers are.\n\n"
        f"/** soxr {soxr.__version__}, HQ; fitted to {worst:.0f} dB or better. */\n"
        f"export const CUTOFF = {CUTOFF};\n\n"
        "/** By input over output rate, in lowest terms: b, h and d. */\n"
        "export const FILTERS = {\n" + "\n".join(lines) + "\n};\n"
    )
    (OUT / "soxr.js").write_text(text)


def response(step: int, phases: int) -> tuple[Array, Array]:
    """Times in samples of the lower rate, and the impulse response there."""
    low = min(step, phases)
    n = (int(1000 * step / low) // step + 2) * step
    times, values = [], []
    for k in sorted({int(place) for place in np.linspace(0, step - 1, min(step, PLACES))}):
        impulse = np.zeros(n)
        at = n // 2 // step * step + k
        impulse[at] = 1
        found = soxr.resample(impulse, step, phases, quality="HQ")
        t = (np.arange(len(found)) * step / phases - at) * low / step
        near = abs(t) < REACH
        times.append(t[near])
        values.append(found[near] * step / low)
    return np.concatenate(times), np.concatenate(values)


def fit(t: Array, g: Array, bends: int) -> tuple[tuple[float, float, Array], float]:
    """(b, h, d), and the residual in dB of the response."""

    def parts(setting: Array) -> Array:
        shifted = [kernel(t - j / 2, *setting) + kernel(t + j / 2, *setting) for j in range(bends)]
        return np.stack(shifted, 1) / 2

    def bend(setting: Array) -> Array:
        if bends == 1:
            return np.ones(1)
        return np.asarray(np.linalg.lstsq(parts(setting), g, rcond=None)[0])

    def error(setting: Array) -> Array:
        return np.asarray(parts(setting) @ bend(setting) - g)

    best = min(
        (
            least_squares(error, start, x_scale=[1, 10], xtol=1e-13, ftol=1e-13)
            for start in ([13.04, 97.25], [13.71, 102.25], [14.1, 104.8], [14.38, 107.2])
        ),
        key=lambda found: found.cost,
    )
    residual = 10 * math.log10(float((best.fun**2).sum() / (g**2).sum()))
    return (*best.x, bend(best.x)), residual


def kernel(t: Array, beta: float, half: float) -> Array:
    inside = np.sqrt(np.maximum(0, 1 - (t / half) ** 2))
    window = np.where(abs(t) < half, i0(beta * inside) / i0(beta), 0)
    return np.asarray(CUTOFF * np.sinc(CUTOFF * t) * window)


if __name__ == "__main__":
    main()
