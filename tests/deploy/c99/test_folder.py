"""The folder of C as a whole: the example against the model, damaged files, sizes, replacing."""

from __future__ import annotations

import copy
import errno
import shutil
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from damage import damaged_files
from toy_run import LABELS, RATE, WINDOW, noise_of, toy_bundle

from stapes import files
from stapes.bundle import Bundle
from stapes.deploy.c99.compiled import c_compiler, can_compile
from stapes.deploy.c99.folder import CExport, made_up_sound, write_c
from stapes.errors import ConfigError, StapesError
from stapes.evaluation.predict import Classifier
from stapes.features import BandNormalizer, ThreeWindowLogMel
from stapes.models import create_model

SANITIZED = "-O0 -fsanitize=address,undefined -fno-sanitize-recover=all"
STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wdouble-promotion -Werror"

needs_compiler = pytest.mark.skipif(not can_compile(), reason="needs a C compiler and make")


@dataclass(frozen=True)
class Built:
    """A model as C, its program compiled with sanitizers and with warnings as errors."""

    bundle: Bundle
    made: CExport

    def classify(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.made.folder / "classify", *arguments], capture_output=True, text=True
        )

    def probabilities(self, paths: list[Path]) -> np.ndarray:
        done = self.classify("--probabilities", *paths)
        assert done.stderr == ""
        assert done.returncode == 0
        head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert head == ["file", *self.bundle.labels]
        assert [row[0] for row in rows] == [str(path) for path in paths]
        return np.array([[float(x) for x in row[1:]] for row in rows])


@pytest.fixture(scope="module")
def plain() -> Bundle:
    return toy_bundle()


def moved(bundle: Bundle) -> Bundle:
    """The same model with another normalisation."""
    normalizer = copy.deepcopy(bundle.normalizer)
    normalizer.mean += 1
    return replace(bundle, normalizer=normalizer)


def make(folder: Path, *targets: str, flags: str = SANITIZED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "-C", folder, f"CC={c_compiler()}", f"CFLAGS={flags}",
         f"WARNINGS={STRICT}", *targets],
        capture_output=True, text=True,
    )  # fmt: skip


def build(folder: Path, bundle: Bundle) -> Built:
    made = write_c(bundle, folder, measure=False)
    done = make(folder, "classify", "run-test")
    assert done.returncode == 0, done.stderr
    return Built(bundle, made)


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Built:
    bundle = toy_bundle(hop_seconds="0.3")
    return build(tmp_path_factory.mktemp("mono") / "c", bundle)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Built:
    bundle = toy_bundle(channels="2", shorter="repeat", longer="crop")
    return build(tmp_path_factory.mktemp("stereo") / "c", bundle)


def expected(bundle: Bundle, paths: list[Path]) -> np.ndarray:
    return np.array([p.probabilities for p in Classifier(bundle).classify(paths)])


# --- recordings --------------------------------------------------------------------------------


@needs_compiler
def test_every_coding_gives_the_model_s_answer(mono: Built, tmp_path: Path) -> None:
    paths = []
    for seed, (kind, coding) in enumerate(
        [
            *(("WAV", coding) for coding in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")),
            *(("WAV", coding) for coding in ("FLOAT", "DOUBLE")),
            *(("WAVEX", coding) for coding in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE")),
        ]
    ):
        for channels in (1, 3):
            path = tmp_path / f"{kind}-{coding}-{channels}.wav"
            soundfile.write(path, noise_of(seed, channels).T, RATE, coding, format=kind)
            paths.append(path)
    found = mono.probabilities(paths)
    np.testing.assert_allclose(found, expected(mono.bundle, paths), rtol=0, atol=1e-5)
    assert len({row.argmax() for row in found}) > 1


@needs_compiler
@pytest.mark.parametrize("name", ["mono", "stereo"])
def test_every_length_is_cut_as_the_model_cuts_it(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Windows of 4000 samples, every 2400 for mono.
    built: Built = request.getfixturevalue(name)
    paths = []
    for n in (1, 1500, 3999, 4000, 4001, 6400, 6401, 13_000):
        for channels in (1, 2, 3):
            path = tmp_path / f"{n}-{channels}.wav"
            soundfile.write(path, noise_of(n, channels, 13_000 / RATE).T[:n], RATE, "PCM_24")
            paths.append(path)
    np.testing.assert_allclose(
        built.probabilities(paths), expected(built.bundle, paths), rtol=0, atol=1e-5
    )


@needs_compiler
def test_the_most_probable_label_is_printed(mono: Built, tmp_path: Path) -> None:
    paths = []
    for seed in range(6):
        paths.append(tmp_path / f"{seed}.wav")
        soundfile.write(paths[-1], noise_of(seed).T, RATE, "PCM_16")
    done = mono.classify(*paths)
    lines = done.stdout.splitlines()
    for line, prediction in zip(lines, Classifier(mono.bundle).classify(paths), strict=True):
        path, label, score = line.rsplit(" ", 2)
        assert (path, label) == (f"{prediction.source}:", prediction.label)
        assert float(score) == pytest.approx(prediction.score, abs=1e-4)


def wav(
    data: bytes,
    *,
    kind: int = 1,
    bits: int = 16,
    channels: int = 1,
    rate: int = RATE,
    frame: int | None = None,
    claims: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A file whose header may say anything."""
    frame = channels * bits // 8 if frame is None else frame
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits)
    size = len(data) if claims is None else claims
    body = before + b"fmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


SAMPLES = (noise_of(3)[0] * 32767).astype("<i2").tobytes()


@needs_compiler
def test_headers_that_claim_too_much_or_hold_more_are_read(mono: Built, tmp_path: Path) -> None:
    odd = b"LIST" + struct.pack("<I", 5) + b"12345\0"
    files = {
        "plain": wav(SAMPLES),
        "never closed": wav(SAMPLES, claims=0xFFFFFFFF),
        "cut": wav(SAMPLES[:-101], claims=len(SAMPLES)),
        "other chunks": wav(SAMPLES, before=odd),
        "behind": wav(SAMPLES) + odd,
        "12 bits": wav(SAMPLES, bits=12, frame=2),
    }
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / f"{name}.wav")
        paths[-1].write_bytes(content)
    np.testing.assert_allclose(
        mono.probabilities(paths), expected(mono.bundle, paths), rtol=0, atol=1e-5
    )


@needs_compiler
def test_what_cannot_be_classified_is_one_sentence(mono: Built, tmp_path: Path) -> None:
    values = noise_of(3)[0]
    values[99] = np.nan
    wrong = {
        "empty": (b"", "is no wav file"),
        "text": (b"label,path\n" * 50, "is no wav file"),
        "a recording of no samples": (wav(b""), "holds no samples"),
        "no data": (wav(SAMPLES)[:36], "holds no samples"),
        "data first": (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "header is damaged"),
        "compressed": (wav(SAMPLES, kind=2), "are compressed"),
        "no channels": (wav(SAMPLES, channels=0, frame=2), "header is damaged"),
        "uneven frames": (wav(SAMPLES, channels=2, frame=3), "unusual size"),
        "24 bits in 32": (wav(SAMPLES, bits=24, frame=4), "unusual size"),
        "wide": (wav(SAMPLES, bits=40), "unusual size"),
        "other rate": (wav(SAMPLES, rate=11_025), "has 11025 Hz and the model listens at 8000 Hz"),
        "not a number": (wav(values.tobytes(), kind=3, bits=32), "not a finite number"),
        "a short header": (wav(SAMPLES)[:20], "header is damaged"),
    }
    good = tmp_path / "good.wav"
    good.write_bytes(wav(SAMPLES))
    for name, (content, reason) in wrong.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(content)
        done = mono.classify(path, good)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{path}: ")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout.startswith(f"{good}: ")  # the others are classified all the same
    missing = mono.classify(tmp_path / "missing.wav")
    assert missing.returncode == 1
    assert "cannot be opened" in missing.stderr
    assert mono.classify().returncode == 1
    assert mono.classify("--probabilities").stderr.startswith("usage: ")


@needs_compiler
def test_no_damage_makes_it_misbehave(mono: Built, tmp_path: Path) -> None:
    good = []
    for coding in ("PCM_16", "PCM_24", "DOUBLE"):
        good.append(tmp_path / f"{coding}.wav")
        soundfile.write(good[-1], noise_of(1, 2, 0.1).T, RATE, coding, format="WAVEX")
    paths = damaged_files(tmp_path / "damaged", good, 150, seed=1)
    done = mono.classify(*paths)
    lines = done.stdout.splitlines() + done.stderr.splitlines()
    assert len(lines) == len(paths)  # a sanitizer would write more, and stop the program
    assert all(line.startswith(str(tmp_path)) for line in lines)
    assert len(done.stdout.splitlines()) > 20


# --- the model's own test ----------------------------------------------------------------------


@needs_compiler
def test_the_folder_can_test_itself(mono: Built, stereo: Built, tmp_path: Path) -> None:
    for built in (mono, stereo):
        sound = made_up_sound(built.bundle.normalizer.mean.shape[0], round(WINDOW * RATE))
        assert np.abs(sound).max() <= 0.25
        assert sound.std() > 0.05
        done = subprocess.run([built.made.folder / "run-test"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.endswith("right\n")
    other = tmp_path / "c"
    shutil.copytree(mono.made.folder, other)
    (other / "expected.h").write_text((stereo.made.folder / "expected.h").read_text())
    done = make(other, "test")  # only test.c is compiled again
    assert done.returncode != 0
    assert "WRONG" in done.stdout


# --- sizes, labels, text -----------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("flags", ["", "-mavx", "-DSTAPES_PLAIN", "-DSTAPES_PLAIN -DSTAPES_SINGLE"])
def test_the_stated_sizes_are_those_of_the_struct_and_the_tables(
    mono: Built, tmp_path: Path, flags: str
) -> None:
    processor = Path("/proc/cpuinfo")  # of Linux
    if flags == "-mavx" and not (processor.is_file() and b" avx " in processor.read_bytes()):
        pytest.skip("needs an x86 processor with AVX, and /proc/cpuinfo that says so")
    (tmp_path / "sizes.c").write_text(
        '#include <stdio.h>\n#include "stapes.h"\nint main(void)\n{\n'
        'printf("%d %zu %d\\n", STAPES_RAM_BYTES, sizeof(stapes_state), STAPES_FLASH_BYTES);\n'
        "return 0;\n}\n"
    )
    subprocess.run(
        [str(c_compiler()), "-std=c99", *flags.split(), "-I", mono.made.folder,
         "-o", tmp_path / "sizes", tmp_path / "sizes.c"],
        check=True,
    )  # fmt: skip
    done = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True)
    ram, struct_ram, flash = map(int, done.stdout.split())
    assert ram == struct_ram
    if flags == "-mavx":
        assert (ram, flash) == (mono.made.ram, mono.made.flash)
    if flags == "-DSTAPES_PLAIN":
        assert (ram, flash) == (mono.made.ram_plain, mono.made.flash)
    readme = (mono.made.folder / "README.md").read_text()
    assert f"| {flash:,} | {ram:,} |" in readme


@needs_compiler
def test_the_stated_flash_is_that_of_all_constants(mono: Built, tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    shutil.copytree(mono.made.folder, tmp_path / "c")
    make(tmp_path / "c", "clean")
    assert make(tmp_path / "c", "objects", flags="-O1").returncode == 0
    objects = sorted((tmp_path / "c").glob("*.o"))
    listed = subprocess.run(
        ["nm", "-S", *objects], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines()]
    constants = [row for row in rows if len(row) == 4 and row[2].lower() in "rd"]
    texts = sum(len(label) + 1 for label in LABELS)
    assert sum(int(row[1], 16) for row in constants) + texts == mono.made.flash
    # Nothing is written but the state: no variables, initialised or not.
    assert not [
        row for row in rows if len(row) == 4 and row[2] in "BbCDd" and "labels" not in row[3]
    ]
    # Nothing is called but libm and copying.
    called = {row[1] for row in rows if len(row) == 2 and row[0] == "U"}
    foreign = {name for name in called if not name.startswith("stapes_")}
    assert foreign <= {"expf", "logf", "memcpy", "memmove", "memset", "lrintf", "rintf",
                       "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}  # fmt: skip


@needs_compiler
def test_labels_of_any_text_are_printed(plain: Bundle, tmp_path: Path) -> None:
    labels = ('a "quote" \\ ??/ %s\\n', "Grün, 鳥 0123", "line\nbreak */ 7")
    bundle = replace(plain, labels=labels)
    write_c(bundle, tmp_path / "c", measure=False)
    (tmp_path / "c" / "main.c").write_text(
        '#include <stdio.h>\n#include "stapes.h"\nint main(void)\n{\n'
        'for (int i = 0; i < STAPES_LABELS; i++) printf("%s%c", stapes_labels[i], 0);\n'
        "return 0;\n}\n"
    )
    done = make(tmp_path / "c", "classify", flags="-O0")
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([tmp_path / "c" / "classify"], capture_output=True, check=True).stdout
    assert tuple(shown.decode().split("\0")[:-1]) == labels


def test_the_same_model_gives_the_same_folder(plain: Bundle, tmp_path: Path) -> None:
    write_c(plain, tmp_path / "a", measure=False)
    write_c(plain, tmp_path / "b", measure=False)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"stapes.h", "model.h", "model.c", "main.c", "Makefile", "README.md"} <= names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert "$" not in (tmp_path / "a" / name).read_text() or name == "Makefile"
    for path in (tmp_path / "a").iterdir():
        assert str(tmp_path) not in path.read_text()


@needs_compiler
def test_the_program_s_size_is_measured(plain: Bundle, tmp_path: Path) -> None:
    if shutil.which("size") is None:
        pytest.skip("needs size (binutils)")
    made = write_c(plain, tmp_path / "c")
    assert made.code is not None
    assert 5_000 < made.code < 50_000
    assert f"about {made.code:,} bytes" in (tmp_path / "c" / "README.md").read_text()


# --- what is refused, and replacing ------------------------------------------------------------


def test_what_has_no_c_code_is_refused(plain: Bundle, tmp_path: Path) -> None:
    other = create_model("timm", architecture="lcnet_050", n_classes=3)
    with pytest.raises(ConfigError, match="only cp_resnet"):
        write_c(replace(plain, network=other), tmp_path / "c")
    three = ThreeWindowLogMel(sample_rate=RATE, n_mels=64, n_frames=40)
    with pytest.raises(ConfigError, match="three_window_log_mel"):
        write_c(replace(plain, frontend=three, normalizer=BandNormalizer(3, 64)), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_only_exported_sources_are_replaced(plain: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    write_c(plain, folder, measure=False)  # an empty folder is as good as none
    first = (folder / "model.c").read_bytes()
    (folder / "fft.o").write_bytes(b"built")
    write_c(moved(plain), folder, measure=False)
    assert (folder / "model.c").read_bytes() != first
    assert not (folder / "fft.o").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"other files.*notes\.txt"):
        write_c(plain, folder, measure=False)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        write_c(plain, tmp_path / "file", measure=False)
    assert {path.name for path in tmp_path.iterdir()} == {"c", "file"}


def test_what_is_written_is_checked_aside(plain: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    seen: list[CExport] = []
    made = write_c(plain, folder, measure=False, check=seen.append)
    (checked,) = seen
    assert checked.folder.parent == tmp_path
    assert checked.folder != folder
    assert replace(checked, folder=folder) == made
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(made: CExport) -> None:
        assert (made.folder / "model.c").read_bytes() != before["model.c"]
        raise StapesError(f"{made.folder}: other answers")

    with pytest.raises(StapesError) as caught:
        write_c(moved(plain), folder, measure=False, check=refuse)
    assert str(caught.value) == f"{folder}: other answers"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(StapesError):
        write_c(moved(plain), tmp_path / "new" / "place" / "c", measure=False, check=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("fails_at", ["writing", "renaming"])
def test_a_failure_leaves_the_old_folder(
    fails_at: str, plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    write_c(plain, folder, measure=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise full
        return rename(path, target)

    def failing_bytes(path: Path, content: bytes) -> None:
        if path.name == "stapes.c":
            raise files.cannot_write(path, full)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    if fails_at == "renaming":
        monkeypatch.setattr(Path, "rename", failing)
    else:
        monkeypatch.setattr(files, "write_bytes", failing_bytes)
    with pytest.raises(StapesError, match="disk is full") as caught:
        write_c(moved(plain), folder, measure=False)
    assert ".partial" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
