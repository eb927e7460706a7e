"""A model as a folder of C99: the fixed sources, and what is generated for the model."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stapes.bundle import Bundle
from stapes.deploy.c99.compiled import c_compiler
from stapes.deploy.c99.frontend import VECTOR_BYTES, frontend_part, frontend_sizes
from stapes.deploy.c99.network import network_part
from stapes.deploy.c99.part import Part
from stapes.deploy.c99.text import comment, define, number
from stapes.errors import ConfigError
from stapes.features import LogMel, PerceptualMel
from stapes.files import cannot_write, write_folder
from stapes.inference.settings import AudioSettings
from stapes.models.registry import network_settings

__all__ = ["CExport", "made_up_sound", "write_c"]

_SOURCE = Path(__file__).parent / "source"
# Not part of the classifier.
_EXAMPLES = ("main.c", "wav.c", "test.c")
_BUILT = ("classify", "run-test", "libstapes.so")

# Of a probability that test.c computes, from the model's. Single precision of the Fourier transform
# or of a sum may move a value over the border between two levels of an int8 network.
_TOLERANCE = {"float32": 1e-4, "float16": 1e-4, "int8": 0.05}


@dataclass(frozen=True)
class CExport:
    """What was written.

    Attributes:
        folder: where.
        flash: bytes of all constants, labels included, on a 64-bit processor.
        ram: bytes of the state on a processor with AVX, on which it is largest.
        ram_plain: the same on one without vectors.
        code: bytes of the program as the compiler of this machine translates it for small size;
            none where there is no compiler, or that was not asked for.
        window: bytes of the samples as ``float``, which the caller holds.
    """

    folder: Path
    flash: int
    ram: int
    ram_plain: int
    code: int | None
    window: int


def write_c(
    bundle: Bundle,
    folder: str | Path,
    *,
    chunk: int | None = None,
    sparse: bool | None = None,
    measure: bool = True,
    check: Callable[[CExport], object] | None = None,
) -> CExport:
    """Write a model as C99, all of the folder or nothing.

    A folder that holds such sources, and perhaps what was built of them, is replaced.

    Args:
        bundle: CP-ResNet of any kind, float32 or int8; weights of float16 become float32.
        folder: to be made.
        chunk: columns of the spectrogram that the network takes at once, see
            :func:`~stapes.deploy.c99.network.network_part`.
        sparse: see there.
        measure: compile the sources to say how large the program is, which takes a second.
        check: called when all is written, in a folder aside that is named in what it is given; an
            error that it raises is passed on, and nothing is left of what was written.

    Raises:
        ConfigError: a network or front end without C code, or a folder that holds other files.
        StapesError: the disk is full or the place cannot be written to.
    """
    folder = Path(folder)
    files, made = _files(bundle, folder, chunk, sparse, measure)
    _check_place(folder, set(files))
    contents = {name: text.encode(errors="surrogateescape") for name, text in files.items()}
    write_folder(folder, contents, lambda aside: check and check(replace(made, folder=aside)))
    return made


def _files(
    bundle: Bundle, folder: Path, chunk: int | None, sparse: bool | None, measure: bool
) -> tuple[dict[str, str], CExport]:
    audio = bundle.audio
    frontend = frontend_part(bundle.frontend, bundle.normalizer, audio)
    network = network_part(
        bundle.network,
        bundle.frontend.n_bins,
        bundle.frontend.n_frames(audio.window),
        chunk=chunk,
        sparse=sparse,
    )
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(_SOURCE.iterdir())}
    files["model.h"] = _model_header(bundle, frontend, network)
    files["model.c"] = _model_source(bundle.labels, frontend, network)
    files["expected.h"] = _expected(bundle, audio)
    plain = _sizes(bundle, network, vector_bytes=0)
    largest = _sizes(bundle, network, vector_bytes=VECTOR_BYTES)
    made = CExport(
        folder,
        *largest,
        ram_plain=plain[1],
        code=_code_size(files) if measure else None,
        window=4 * audio.channels * audio.window,
    )
    files["README.md"] = _readme(files["README.md"], bundle, audio, network, made)
    return files, made


def _sizes(
    bundle: Bundle, network: Part, *, vector_bytes: int, single: bool = False
) -> tuple[int, int]:
    """Bytes of flash and of RAM on some processor: what the macros of ``model.h`` give there."""
    assert isinstance(bundle.frontend, LogMel | PerceptualMel)
    channels = bundle.normalizer.mean.shape[0]
    frontend = frontend_sizes(
        bundle.frontend,
        bundle.normalizer,
        channels,
        vector_bytes=vector_bytes,
        single=single,
    )
    columns = 4 * frontend.lanes * channels * bundle.frontend.n_bins
    columns += (columns + network.ram) % 8
    return (
        frontend.flash + network.flash + _label_bytes(bundle.labels),
        frontend.ram + columns + network.ram,
    )


# --- model.h, model.c, expected.h --------------------------------------------------------------


def _model_header(bundle: Bundle, frontend: Part, network: Part) -> str:
    columns = "STAPES_LANES * STAPES_CHANNELS * STAPES_BINS"
    return "\n".join(
        [
            "/*",
            *(f" * {line}".rstrip() for line in map(_in_comment, _card(bundle))),
            " */\n",
            "#ifndef STAPES_MODEL_H",
            "#define STAPES_MODEL_H\n",
            define("STAPES_LABELS", len(bundle.labels)),
            "",
            frontend.header,
            network.header,
            "/* --- the whole --- */\n",
            "/* Floats of a few columns, and one more where the state is no multiple of 8. */",
            define("STAPES_COLUMNS", f"({columns} + ({columns} + {network.ram // 4}) % 2)"),
            "",
            "/* Bytes of all constants (pointers with 8), and of the state. */",
            define(
                "STAPES_FLASH_BYTES",
                f"(STAPES_FRONTEND_FLASH + {network.flash + _label_bytes(bundle.labels)})",
            ),
            define(
                "STAPES_RAM_BYTES",
                f"(STAPES_FRONTEND_RAM + 4 * STAPES_COLUMNS + {network.ram})",
            ),
            "\n#endif\n",
        ]
    )


def _model_source(labels: tuple[str, ...], frontend: Part, network: Part) -> str:
    names = ",\n".join(f"    {_c_string(label)}" for label in labels)
    return "\n".join(
        [
            "/* Generated: the model's labels, tables and weights. */\n",
            '#include "stapes.h"\n',
            f"const char *const stapes_labels[{len(labels)}] = {{\n{names},\n}};\n",
            frontend.source,
            network.source,
        ]
    )


def _c_string(text: str) -> str:
    """A literal of the text in UTF-8, whatever it holds."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    octets = text.encode("utf-8", errors="surrogateescape")
    return '"' + "".join(chr(o) if o in plain else f"\\{o:03o}" for o in octets) + '"'


def _label_bytes(labels: tuple[str, ...]) -> int:
    texts = [label.encode("utf-8", errors="surrogateescape") for label in labels]
    return sum(len(text) + 1 + 8 for text in texts)  # a zero behind it, a pointer to it


def _expected(bundle: Bundle, audio: AudioSettings) -> str:
    sound = torch.from_numpy(made_up_sound(audio.channels, audio.window))[None]
    with torch.inference_mode():
        row = bundle.module()(sound).softmax(1)[0].numpy()
    numbers = ", ".join(number("float", p) for p in row)
    return (
        "/* The model's answer to the sound that test.c makes up. */\n\n"
        '#include "model.h"\n\n'
        f"{define('TOLERANCE', number('float', _TOLERANCE[bundle.precision]))}\n\n"
        f"static const float expected[STAPES_LABELS] = {{{numbers}}};\n"
    )


def made_up_sound(channels: int, n_samples: int) -> NDArray[np.float32]:
    """The sound that ``test.c`` classifies, (C, N): noise, loud and faint in turn."""
    i = np.arange(channels * n_samples, dtype=np.uint32)
    x = i * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    x = (x ^ x >> np.uint32(13)) >> np.uint32(8)
    loudness = np.where(i // 1024 % 2 == 1, np.float32(0.25), np.float32(0.0078125))
    sound = (x.astype(np.float32) / np.float32(8388608) - np.float32(1)) * loudness
    return sound.astype(np.float32).reshape(channels, n_samples)


# --- the card ----------------------------------------------------------------------------------


def _card(bundle: Bundle) -> list[str]:
    """What the model is and where it comes from, a line each."""
    facts = bundle.metadata
    audio = bundle.recipe.audio
    network = ", ".join(f"{k} {v}" for k, v in network_settings(bundle.network).items())
    frontend = ", ".join(f"{k} {v}" for k, v in bundle.frontend.settings().items())
    lines = [
        f"labels: {', '.join(bundle.labels)}",
        f"input: {audio.channels} channel(s) at {audio.sample_rate} Hz, windows of "
        f"{audio.window_seconds:g} s",
        f"front end: {frontend}",
        f"network: {network}",
        f"precision: {'int8' if bundle.precision == 'int8' else 'float32'}",
    ]
    score = facts.get("cross_validated_score") or facts.get("score")
    if score:
        accuracy = score["accuracy"]
        lines.append(
            f"accuracy: {100 * accuracy['value']:.1f} % (95 % interval {100 * accuracy['low']:.1f} "
            f"to {100 * accuracy['high']:.1f}) of {score['n_clips']} clips from "
            f"{score['n_groups']} sources"
        )
    data: dict[str, Any] = facts.get("data", {})
    if "name" in data:
        lines.append(f"trained on: {data['name']}, {data.get('train_clips', '?')} clips")
    lines += [f"{key}: {data[key]}" for key in ("licence", "citation") if data.get(key)]
    if "stapes" in facts.get("versions", {}):
        lines.append(f"made by: stapes {facts['versions']['stapes']}")
    return lines


def _in_comment(line: str) -> str:
    return comment(line)[3:-3]


def _readme(text: str, bundle: Bundle, audio: AudioSettings, network: Part, made: CExport) -> str:
    def row(name: str, vector_bytes: int, single: bool = False) -> str:
        flash, ram = _sizes(bundle, network, vector_bytes=vector_bytes, single=single)
        return f"| {name} | {flash:,} | {ram:,} |"

    rows = [
        row("with AVX", VECTOR_BYTES),
        row("with SSE2, or 64-bit ARM", VECTOR_BYTES // 2),
        row("without vectors", 0),
        row("without vectors, `-DSTAPES_SINGLE`", 0, single=True),
    ]
    code = "`make size` prints the bytes of the program itself.\n"
    if made.code is not None:
        code = (
            f"The program itself takes about {made.code:,} bytes (as the compiler of the exporting "
            "machine translates it with `-Os`).\n"
        )
    single = "The front end computes in `float` as it is."
    if isinstance(bundle.frontend, LogMel):
        single = (
            "Bands that are some 120 dB fainter than the loudest (beside a pure tone in silence) "
            "then hold rounding noise."
        )
    fixed = {"stapes", "model", "frontend", "fft", "wav", "main", "test", "expected"}
    names = {path.name for path in _SOURCE.glob("*.[ch]") if path.stem not in fixed}
    return Template(text).substitute(
        summary=f"{len(bundle.labels)} labels from windows of {audio.window_seconds:g} s: "
        f"{audio.channels} channel(s) at {audio.sample_rate} Hz.",
        network_files=", ".join(f"`{name}`" for name in sorted(names)),
        sizes="\n".join(rows),
        code=code,
        window_bytes=f"{made.window:,}",
        single=single,
        card="\n".join(f"- {line}" for line in _card(bundle)),
    )


def _code_size(files: dict[str, str]) -> int | None:
    """Bytes of the program, without tables and example; none where it cannot be measured."""
    compiler, size = c_compiler(), shutil.which("size")
    if compiler is None or size is None:
        return None
    sources = [n for n in files if n.endswith(".c") and n not in (*_EXAMPLES, "model.c")]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for file, text in files.items():
            (place / file).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [compiler, "-std=c99", "-Os", "-c", *sources], cwd=place, capture_output=True
        )
        if done.returncode:
            return None
        objects = [str(path) for path in place.glob("*.o")]
        table = subprocess.run([size, *objects], capture_output=True, text=True)
    rows = [line.split() for line in table.stdout.splitlines()[1:]]
    return sum(int(row[0]) for row in rows) if table.returncode == 0 else None


# --- the folder --------------------------------------------------------------------------------


def _check_place(folder: Path, names: set[str]) -> None:
    """Refuse to replace what is not ours."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the C sources.")
    try:
        foreign = sorted(
            path.name
            for path in folder.iterdir()
            if path.name not in names and path.name not in _BUILT and path.suffix != ".o"
        )
    except OSError as error:
        raise cannot_write(folder, error) from error
    if foreign:
        raise ConfigError(
            f"{folder}: holds other files than exported C ({foreign[0]}); name a new folder."
        )
