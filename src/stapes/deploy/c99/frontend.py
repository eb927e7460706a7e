"""The front end's half of the C sources: its sizes, settings and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stapes.deploy.c99.part import Part
from stapes.deploy.c99.text import Values, comment, declare, define, number, table
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, FrontEnd, LogMel, PerceptualMel
from stapes.inference.settings import AudioSettings

__all__ = ["VECTOR_BYTES", "Sizes", "frontend_part", "frontend_sizes"]

VECTOR_BYTES = 32
"""Of the widest processors that the header tells apart: those with AVX."""

_DB = 10.0 / math.log(10.0)

_Table = tuple[str, str, Values, str]  # type, name, numbers, meaning

_ARITHMETIC = """
/* What the Fourier transform computes in; STAPES_SINGLE makes it float in any case. */
#if {precise} && !defined(STAPES_SINGLE)
typedef double stapes_real;
#define STAPES_REAL_BYTES 8
#else
typedef float stapes_real;
#define STAPES_REAL_BYTES 4
#endif

/*
 * Frames worked on at once, which take RAM each: as many as fit into a vector of the processor,
 * where the compiler has GNU C's vectors; STAPES_PLAIN makes it one in any case.
 */
#if !defined(__GNUC__) || defined(STAPES_PLAIN)
#define STAPES_LANES 1
#elif defined(__AVX__)
#define STAPES_LANES (32 / STAPES_REAL_BYTES)
#elif defined(__SSE2__) || defined(__aarch64__)
#define STAPES_LANES (16 / STAPES_REAL_BYTES)
#else
#define STAPES_LANES 1
#endif
"""


def frontend_part(frontend: FrontEnd, normalizer: BandNormalizer, audio: AudioSettings) -> Part:
    """What ``frontend.c`` and ``fft.c`` need to know of a front end and its normalisation.

    ``log_mel`` computes its Fourier transform in double precision, as the torch module does, and
    ``perceptual_mel``, whose floor lies far above the rounding, in single precision.

    Args:
        frontend: ``log_mel`` or ``perceptual_mel``.
        normalizer: (C, F) statistics.
        audio: the window, and how recordings become windows.

    Returns:
        RAM for the widest vectors, with which it is largest, and flash without
        ``STAPES_SINGLE``; the macros in the header say both for the processor at hand.

    Raises:
        ConfigError: another front end, or a floor that is too small.
    """
    if not isinstance(frontend, LogMel | PerceptualMel):
        raise ConfigError(
            f"C export: there is no C code for the front end '{frontend.name}'; export to ONNX, or "
            "train with log_mel or perceptual_mel."
        )
    points = _halved(frontend.n_fft)
    tables = _tables(frontend, normalizer)
    reals, others = _counts(tables)
    sizes = frontend_sizes(frontend, normalizer, audio.channels, vector_bytes=VECTOR_BYTES)
    lines = [
        "/* --- what the model listens to --- */\n",
        define("STAPES_SAMPLE_RATE", audio.sample_rate, "Hz"),
        define("STAPES_CHANNELS", audio.channels),
        define("STAPES_WINDOW", audio.window, "samples of a window"),
        "\n/* How a recording becomes windows. */",
        define("STAPES_WINDOW_HOP", audio.hop, "samples from one to the next, of a longer one"),
        define("STAPES_CROP", audio.longer == "crop", "only the middle of a longer one"),
        define("STAPES_REPEAT", audio.shorter == "repeat", "a shorter one; else zeros follow it"),
        "\n/* --- front end --- */\n",
        comment(", ".join(f"{key} {value}" for key, value in frontend.settings().items())),
        define("STAPES_N_FFT", frontend.n_fft, "samples"),
        define("STAPES_WIN_LENGTH", frontend.win_length, "samples"),
        define("STAPES_HOP", frontend.hop_length, "samples between frames"),
        define("STAPES_FRAMES", frontend.n_frames(audio.window), "of a window"),
        define("STAPES_BINS", frontend.n_bins, "mel bands of each channel"),
        define("STAPES_PERCEPTUAL", not _precise(frontend), "bands of levels, not levels of bands"),
        *_floor(frontend),
        _ARITHMETIC.format(precise=int(_precise(frontend))),
        define("STAPES_POINTS", points, "of the complex transform"),
        define("STAPES_PASSES", len(_radices(points))),
        define("STAPES_TURNS", _halved(frontend.n_fft)),
        define("STAPES_POWERS", frontend.n_fft // 2 + 1, "bins of the power spectrum"),
        define("STAPES_FLOORS", _even(audio.channels), "channels, made even"),
        "",
        "/* Bytes of the state and of the tables. */",
        define(
            "STAPES_FRONTEND_RAM",
            f"({4 * points} * STAPES_LANES * STAPES_REAL_BYTES + {4 * _even(audio.channels)})",
        ),
        define("STAPES_FRONTEND_FLASH", f"({reals} * STAPES_REAL_BYTES + {4 * others})"),
        "",
        *(f"extern {declare(kind, name, values)};" for kind, name, values, _ in tables),
    ]
    source = [
        "/* --- front end --- */\n",
        "#define R(x) ((stapes_real)(x))\n",
        *(f"{comment(said)}\n{table(kind, name, values)}" for kind, name, values, said in tables),
    ]
    return Part(
        header="\n".join(lines) + "\n",
        source="\n".join(source),
        flash=sizes.flash,
        ram=sizes.ram,
    )


@dataclass(frozen=True)
class Sizes:
    """What the front end takes on some processor: bytes of tables and state, frames at once."""

    flash: int
    ram: int
    lanes: int


def frontend_sizes(
    frontend: LogMel | PerceptualMel,
    normalizer: BandNormalizer,
    channels: int,
    *,
    vector_bytes: int,
    single: bool = False,
) -> Sizes:
    """What the header's macros say on a processor.

    Args:
        frontend, normalizer: as for :func:`frontend_part`.
        channels: C of the waveform.
        vector_bytes: of its vectors; 0: it has none, or ``STAPES_PLAIN`` is defined.
        single: whether ``STAPES_SINGLE`` is defined.
    """
    real = 4 if single or not _precise(frontend) else 8
    lanes = vector_bytes // real or 1
    reals, others = _counts(_tables(frontend, normalizer))
    return Sizes(
        flash=reals * real + 4 * others,
        # Two buffers of complex numbers, and a floor of each channel.
        ram=4 * _halved(frontend.n_fft) * lanes * real + 4 * _even(channels),
        lanes=lanes,
    )


def _counts(tables: list[_Table]) -> tuple[int, int]:
    """Numbers of the type of the transform, and all others, which take 4 bytes."""
    reals = sum(len(values) for kind, _, values, _ in tables if kind == "stapes_real")
    return reals, sum(len(values) for *_, values, _ in tables) - reals


def _precise(frontend: LogMel | PerceptualMel) -> bool:
    return isinstance(frontend, LogMel)


def _even(channels: int) -> int:
    # The state becomes a whole number of 8 bytes, so that no compiler has to pad it.
    return channels + channels % 2


def _tables(frontend: LogMel | PerceptualMel, normalizer: BandNormalizer) -> list[_Table]:
    n_fft = frontend.n_fft
    angle = -2 * np.pi * np.arange(_halved(n_fft)) / n_fft
    turns = np.stack([np.cos(angle), np.sin(angle)], axis=1).reshape(-1)
    taper = torch.hann_window(frontend.win_length, dtype=torch.float64).numpy()
    low, size, weights = _strips(frontend)
    scale, shift = _scales(frontend, normalizer)
    # C has no empty arrays.
    radices = _radices(_halved(n_fft)) or [1]
    weights = weights if weights.size else np.zeros(1, np.float32)
    return [
        ("int", "radices", radices, "Factors of STAPES_POINTS, in the order of the passes."),
        ("stapes_real", "turns", turns, "exp(-2 pi i k / STAPES_N_FFT): real, imaginary."),
        ("stapes_real", "taper", taper, "Hann window."),
        ("int", "band_low", low, "First bin of each mel band."),
        ("int", "band_size", size, "Bins of each mel band."),
        ("float", "band_weights", weights, "Weights of these bins, band after band."),
        ("float", "scale", scale.reshape(-1), "Normalised = level * scale + shift, by channel."),
        ("float", "shift", shift.reshape(-1), "See stapes_scale."),
    ]


def _halved(n_fft: int) -> int:
    # A real series of even length is transformed as a complex one of half the length.
    return n_fft if n_fft % 2 else n_fft // 2


def _radices(n: int) -> list[int]:
    """Factors of n: eights and fours first, which take the fewest operations, then primes."""
    factors = []
    for radix in (8, 4, 2, *range(3, n + 1, 2)):
        while n % radix == 0:
            factors.append(radix)
            n //= radix
        if n == 1:
            break
    return factors


def _strips(
    frontend: LogMel | PerceptualMel,
) -> tuple[list[int], list[int], NDArray[np.float32]]:
    """First bin and number of bins of each band, and all their weights."""
    # A product with the unit matrix is the matrix, in the front end's own rounding.
    with torch.inference_mode():
        filters = frontend.mel(torch.eye(frontend.n_fft // 2 + 1)).T.numpy()
    low, size, weights = [], [], [np.zeros(0, np.float32)]
    for row in filters:
        used = np.flatnonzero(row)
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        low.append(first)
        size.append(end - first)
        weights.append(row[first:end])
    return low, size, np.concatenate(weights)


def _scales(
    frontend: LogMel | PerceptualMel, normalizer: BandNormalizer
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(C, F) factors and summands that turn natural logarithms into normalised values."""
    mean = normalizer.mean[..., 0].double().cpu().numpy()
    std = normalizer.std[..., 0].double().cpu().numpy()
    if isinstance(frontend, PerceptualMel):  # whose filters hold the unit already
        return 1 / std, (frontend.weighting.double().cpu().numpy() - mean) / std
    return (_DB if frontend.scaling == "db" else 1.0) / std, -mean / std


def _floor(frontend: LogMel | PerceptualMel) -> list[str]:
    """What keeps the logarithm finite."""
    least, top_db, offset = 0.0, None, False
    if isinstance(frontend, PerceptualMel):
        least, top_db = frontend.AMIN, frontend.TOP_DB
    elif frontend.scaling == "db":
        least, top_db = frontend.amin, frontend.top_db
    else:
        least, offset = frontend.log_offset, True
    if least < np.finfo(np.float32).tiny:
        name = "log_offset" if offset else "amin"
        raise ConfigError(
            f"C export: {name} = {least:g}: the C code takes logarithms of float32 numbers, which "
            "reach down to 1.2e-38 only; export to ONNX."
        )
    lines = [
        define("STAPES_FLOOR", number("float", least), "power"),
        define("STAPES_OFFSET", offset, "added to each power, not a limit"),
        define("STAPES_RELATIVE_FLOOR", top_db is not None, "or so far below the loudest"),
    ]
    if top_db is not None:
        lines.append(define("STAPES_RANGE", number("float", 10.0 ** (-top_db / 10)), "power"))
    return lines
