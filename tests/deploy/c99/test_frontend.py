"""The front end in C against torch's, its Fourier transform against NumPy's, under sanitizers."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stapes.deploy import c99
from stapes.deploy.c99.compiled import c_compiler
from stapes.deploy.c99.frontend import frontend_part, frontend_sizes
from stapes.deploy.c99.part import Part
from stapes.deploy.c99.text import comment, number
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, FrontEnd, LogMel, PerceptualMel, ThreeWindowLogMel
from stapes.inference.settings import AudioSettings

RATE = 8000
SOURCE = Path(c99.__file__).parent / "source"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow",
            "-Wdouble-promotion", "-Werror"]  # fmt: skip
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Reads windows of samples and writes their columns; then the sizes, as text.
DRIVER = """
#include <stdio.h>
#include "frontend.h"

static stapes_frontend state;
static float samples[STAPES_CHANNELS * STAPES_WINDOW];
static float columns[STAPES_LANES * STAPES_CHANNELS * STAPES_BINS];

int main(void)
{
    const size_t count = STAPES_CHANNELS * STAPES_WINDOW;
    while (fread(samples, sizeof *samples, count, stdin) == count) {
        stapes_frontend_begin(&state, samples);
        for (int first = 0; first < STAPES_FRAMES; first += STAPES_LANES) {
            const int left = STAPES_FRAMES - first;
            const int now = left < STAPES_LANES ? left : STAPES_LANES;
            stapes_frontend_frames(&state, samples, first, now, columns);
            const size_t floats = (size_t)now * STAPES_CHANNELS * STAPES_BINS;
            fwrite(columns, sizeof *columns, floats, stdout);
        }
    }
    fprintf(stderr, "%d %zu %d", STAPES_FRONTEND_RAM, sizeof state, STAPES_FRONTEND_FLASH);
    return 0;
}
"""

# Transforms what it reads: the real parts of all points of all lanes, then the imaginary parts.
FFT_DRIVER = """
#include <stdio.h>
#include "fft.h"

static stapes_lanes a[STAPES_FFT_SIZE], b[STAPES_FFT_SIZE];

int main(void)
{
    const size_t count = fread(a, sizeof *a, STAPES_FFT_SIZE, stdin);
    fwrite(stapes_fft(a, b), sizeof *a, count, stdout);
    return 0;
}
"""

# The logarithms of what it reads.
LOG_DRIVER = """
#include <stdio.h>
#include "frontend.c"

int main(void)
{
    float x;
    while (fread(&x, sizeof x, 1, stdin) == 1) {
        x = natural_log(x);
        fwrite(&x, sizeof x, 1, stdout);
    }
    return 0;
}
"""

pytestmark = pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")


def compile_c(
    folder: Path,
    part: Part,
    driver: str,
    flags: Sequence[str] = SANITIZERS,
    names: Sequence[str] = ("fft", "frontend"),
) -> Path:
    """Our sources and a main function as a program; a warning is an error."""
    folder.mkdir(exist_ok=True)
    for path in SOURCE.iterdir():
        if path.stem in names:
            shutil.copy(path, folder)
    guard = "#ifndef STAPES_MODEL_H\n#define STAPES_MODEL_H\n"
    (folder / "model.h").write_text(f"{guard}{part.header}\n#endif\n")
    (folder / "model.c").write_text(f'#include "model.h"\n{part.source}')
    (folder / "driver.c").write_text(driver)
    compiler = c_compiler()
    assert compiler is not None
    # A driver may take a file in whole, to reach what is its own.
    files = [str(path) for path in folder.glob("*.c") if f'"{path.name}"' not in driver]
    subprocess.run(
        [compiler, *WARNINGS, *flags, "-o", str(folder / "program"), *files, "-lm"], check=True
    )
    return folder / "program"


def frontend_in_c(
    folder: Path,
    frontend: FrontEnd,
    normalizer: BandNormalizer,
    waves: np.ndarray,
    flags: Sequence[str] = SANITIZERS,
) -> tuple[np.ndarray, list[int]]:
    """(B, C, F, T) of (B, C, N), and the sizes that the program states."""
    batch, channels, n = waves.shape
    part = frontend_part(frontend, normalizer, AudioSettings(RATE, channels, n / RATE))
    program = compile_c(folder, part, DRIVER, flags)
    done = subprocess.run(
        [program], input=waves.astype(np.float32).tobytes(), capture_output=True, check=True
    )
    columns = np.frombuffer(done.stdout, np.float32)
    shape = (batch, frontend.n_frames(n), channels, frontend.n_bins)
    return columns.reshape(shape).transpose(0, 2, 3, 1), [int(x) for x in done.stderr.split()]


def a_normalizer(frontend: FrontEnd, channels: int) -> BandNormalizer:
    normalizer = BandNormalizer(channels, frontend.n_bins)
    torch.manual_seed(0)
    normalizer.mean.normal_(-40, 20)
    normalizer.std.uniform_(5, 30)
    return normalizer


def waves_of(channels: int, n: int) -> np.ndarray:
    """Windows that are dense, tonal, silent, and silent with a click at one end."""
    rng = np.random.default_rng(n)
    time = np.arange(n) / RATE
    dense = rng.normal(0, 0.2, (channels, n))
    # 150 dB between the loudest and the faintest band.
    tonal = np.stack([0.9 * np.sin(2 * np.pi * 440 * (1 + c) * time) for c in range(channels)])
    silent, click = np.zeros((channels, n)), np.zeros((channels, n))
    click[-1, -1] = 0.5
    return np.stack([dense, tonal, silent, click]).astype(np.float32)


def log_mel(n_fft: int, hop: int, n_mels: int, **settings: Any) -> LogMel:
    return LogMel(sample_rate=RATE, n_fft=n_fft, hop_length=hop, n_mels=n_mels, **settings)


FRONT_ENDS: dict[str, tuple[FrontEnd, int, int]] = {
    # front end, channels, samples of the window
    "as the small recipe": (log_mel(1024, 551, 64), 1, 4001),
    "short taper, stereo": (log_mel(512, 160, 40, win_length=399, mel_scale="htk"), 2, 2000),
    "odd": (log_mel(441, 147, 20, win_length=400, mel_norm=None), 1, 2000),
    "a window shorter than half a frame": (log_mel(600, 100, 16), 1, 70),
    "one sample": (log_mel(64, 10, 4), 1, 1),
    "hop beyond the frame": (log_mel(100, 333, 8), 1, 3000),
    "natural logarithm": (log_mel(256, 128, 24, scaling="log", log_offset=1e-4), 1, 1500),
    # One more frame would see the click at the end louder than any frame does.
    "below the loudest, stereo": (log_mel(256, 64, 24, f_min=50, f_max=3000, top_db=40), 2, 1470),
    "empty bands": (log_mel(64, 32, 64), 1, 500),
    "perceptual": (PerceptualMel(sample_rate=RATE, n_fft=512, hop_length=128, n_mels=64), 2, 2000),
    "perceptual, odd": (
        PerceptualMel(sample_rate=RATE, n_fft=405, hop_length=128, n_mels=24),
        1,
        999,
    ),
}


@pytest.mark.parametrize("case", FRONT_ENDS)
def test_every_setting_gives_torch_s_features(case: str, tmp_path: Path) -> None:
    frontend, channels, n = FRONT_ENDS[case]
    normalizer = a_normalizer(frontend, channels)
    waves = waves_of(channels, n)
    with torch.inference_mode():
        expected = normalizer(frontend(torch.from_numpy(waves))).numpy()
    found, (stated_ram, ram, _) = frontend_in_c(tmp_path, frontend, normalizer, waves)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert stated_ram == ram


PROCESSORS = {
    "plain": (["-DSTAPES_PLAIN"], 0, False, 1e-4),
    "smallest vectors": ([], 16, False, 1e-4),
    "single": (["-DSTAPES_SINGLE"], 16, True, 1e-3),
    "plain and single": (["-DSTAPES_PLAIN", "-DSTAPES_SINGLE"], 0, True, 1e-3),
    "this one": (["-march=native", "-O1", "-ffp-contract=fast"], None, False, 1e-4),
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_sizes_and_features_hold_for_every_kind_of_processor(
    processor: str, tmp_path: Path
) -> None:
    flags, vector_bytes, single, tolerance = PROCESSORS[processor]
    frontend, channels, n = FRONT_ENDS["below the loudest, stereo"]
    normalizer = a_normalizer(frontend, channels)
    waves = waves_of(channels, n)[:1]
    with torch.inference_mode():
        expected = normalizer(frontend(torch.from_numpy(waves))).numpy()
    found, (stated_ram, ram, flash) = frontend_in_c(
        tmp_path, frontend, normalizer, waves, [*SANITIZERS, *flags]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert stated_ram == ram
    if vector_bytes is not None:
        sizes = frontend_sizes(
            frontend, normalizer, channels, vector_bytes=vector_bytes, single=single
        )
        assert (sizes.ram, sizes.flash) == (ram, flash)


def test_the_stated_flash_is_that_of_the_tables(tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    frontend, channels, n = FRONT_ENDS["short taper, stereo"]
    normalizer = a_normalizer(frontend, channels)
    part = frontend_part(frontend, normalizer, AudioSettings(RATE, channels, n / RATE))
    program = compile_c(tmp_path, part, DRIVER, [])
    names = subprocess.run(["nm", "-S", program], capture_output=True, text=True, check=True)
    # address, size, type (R or r: read-only), name
    rows = [line.split() for line in names.stdout.splitlines()]
    tables = [row for row in rows if len(row) == 4 and row[3].startswith("stapes_")]
    assert sum(int(row[1], 16) for row in tables if row[2] in "Rr") == part.flash
    assert len({row[3] for row in tables if row[2] in "Rr"}) == 8


# Every radix, first and last and in between; lengths 1 and 2; primes, doubled and squared.
LENGTHS = [1, 2, 30, 96, 98, 101, 128, 1000]


def test_transforms_of_any_length_are_numpy_s(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n_fft in LENGTHS:
        points = n_fft // 2 if n_fft % 2 == 0 else n_fft
        frontend = LogMel(sample_rate=RATE, n_fft=n_fft, hop_length=1, n_mels=1)
        part = frontend_part(frontend, BandNormalizer(1, 1), AudioSettings(RATE, 1, 1.0))
        program = compile_c(tmp_path / str(n_fft), part, FFT_DRIVER, ["-O0"], ["fft"])
        lanes = 2  # of doubles, without flags for this processor
        x = rng.standard_normal((2, points, lanes))
        done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
        found = np.frombuffer(done.stdout).reshape(x.shape)
        expected = np.fft.fft(x[0] + 1j * x[1], axis=0)
        np.testing.assert_allclose(
            found[0] + 1j * found[1], expected, rtol=0, atol=1e-13 * max(10, points)
        )


def test_logarithms_are_numpy_s_over_the_whole_range(tmp_path: Path) -> None:
    part = frontend_part(log_mel(64, 32, 4), BandNormalizer(1, 4), AudioSettings(RATE, 1, 0.1))
    program = compile_c(tmp_path, part, LOG_DRIVER)
    spread = np.exp(np.random.default_rng(0).uniform(-87, 88, 100_000))
    around = np.concatenate([1 + np.linspace(-0.5, 1, 10_001), 2.0 ** np.arange(-126, 128)])
    x = np.concatenate([spread, around]).astype(np.float32)
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    expected = np.log(x.astype(np.float64))
    np.testing.assert_allclose(
        np.frombuffer(done.stdout, np.float32), expected, rtol=3e-7, atol=1e-10
    )


def test_radices_multiply_to_the_length() -> None:
    for n_fft in (*range(1, 50), 1024, 2205, 4410):
        frontend = LogMel(sample_rate=RATE, n_fft=n_fft, hop_length=1, n_mels=1)
        part = frontend_part(frontend, BandNormalizer(1, 1), AudioSettings(RATE, 1, 1.0))
        (body,) = re.findall(r"stapes_radices\[\d+\] = \{([^}]*)\}", part.source)
        (points,) = re.findall(r"STAPES_POINTS (\d+)", part.header)
        radices = [int(text) for text in body.split(",") if text.strip()]
        assert list(itertools.accumulate(radices, lambda a, b: a * b))[-1] == int(points)


def test_what_has_no_c_code_is_refused_with_the_reason() -> None:
    frontend = ThreeWindowLogMel(sample_rate=RATE)
    with pytest.raises(ConfigError, match=r"front end 'three_window_log_mel'.*ONNX"):
        frontend_part(frontend, BandNormalizer(3, 128), AudioSettings(RATE, 1, 1.0))
    with pytest.raises(ConfigError, match="amin = 1e-40"):
        frontend_part(
            log_mel(64, 32, 4, amin=1e-40), BandNormalizer(1, 4), AudioSettings(RATE, 1, 1.0)
        )


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("float", 1, "1.0f"),
        ("float", 1e-10, "1e-10f"),
        ("float", 0.1, "0.1f"),
        ("float", -1e20, "-1e+20f"),
        ("stapes_real", 0.1, "R(0.1)"),
        ("int", 7.0, "7"),
    ],
)
def test_numbers_are_constants_of_their_type(kind: str, value: Any, text: str) -> None:
    assert number(kind, value) == text


def test_no_text_ends_a_comment() -> None:
    assert comment("a */ b /* c\\\nd") == "/* a * / b / * c/ d */"
