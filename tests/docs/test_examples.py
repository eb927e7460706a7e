"""Every example in README.md and docs/ is run as it stands, or says why it is not.

A page is a person: its blocks are run one after the other in a folder of their own, which has the
recordings and the finished runs that the page speaks of. Two things are smaller than a reader's:
the recordings (half-second noises of three classes), and the effort (see ``_LESS``). A block that
cannot be run has ``<!-- not run: REASON -->`` above it; its commands are parsed all the same. One
that talks to a server has ``<!-- while running: stapes serve ... -->`` there: the server is started
at a free port, which takes the place of the example's.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
import typer
from documented import ROOT, Block, blocks_of, command_lines, pages
from warm_process import WarmProcess, warm_process

from stapes import config
from stapes.catalogue import find_model, shipped_models
from stapes.cli.app import app
from stapes.data import corpus_names

RATE = 22_050
COLOURS = {"crow": (2000, 6000), "hen": (300, 1200), "rain": (50, 10_000)}

# What the tests put behind commands that would take long: one pass over the recordings, one trial.
_LESS = {
    "train": ["--set", "training.epochs=1", "--threads", "1"],
    "shrink": ["--trials", "1", "--no-refit", "--threads", "1"],
}
_RUN = {"sh", "python"}
_OTHER_NAMES = {"bash", "shell", "console", "shell-session", "zsh", "py", "python3", "pycon"}

EVERY_BLOCK = [block for page in pages() for block in blocks_of(page)]
PAGES_WITH_EXAMPLES = [
    page for page in pages() if any(b.language in _RUN and not b.reason for b in blocks_of(page))
]


def _noise(label: str, seed: int, seconds: float) -> np.ndarray:
    """Noise between two frequencies, all that tells the classes apart."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(round(seconds * RATE)))
    frequencies = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
    low, high = COLOURS[label]
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    sound = np.fft.irfft(spectrum)
    return 0.3 * sound / np.abs(sound).max()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files under the names that the pages use."""
    folder, seed = tmp_path_factory.mktemp("recordings"), 10
    for name, sources, takes in (
        ("recordings", 5, "ab"), ("few-recordings", 3, "a"), ("labelled", 3, "a"),
    ):  # fmt: skip
        for label in COLOURS:
            (folder / name / label).mkdir(parents=True)
            for source in range(sources):
                for take in takes:
                    seed += 1
                    path = folder / name / label / f"{label}-{source}{take}.wav"
                    soundfile.write(path, _noise(label, seed, 0.5), RATE)
    soundfile.write(folder / "street.wav", _noise("rain", 1, 2), RATE)
    for name in ("street.ogg", "a.wav", "b.mp3"):
        soundfile.write(folder / name, _noise("crow", 4, 2), RATE)
    soundfile.write(folder / "dog.wav", _noise("hen", 2, 1), RATE)
    day = np.concatenate([_noise(label, 3, 4) for label in COLOURS])
    soundfile.write(folder / "day.flac", day, RATE)
    (folder / "responses").mkdir()
    for number in range(2):
        soundfile.write(folder / "responses" / f"{number}.wav", _noise("rain", number, 0.02), RATE)
    shutil.copy(find_model("esc10-32kB", "onnx"), folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    with warm_process(tmp_path_factory.mktemp("warm")) as process:
        (process.programs / "stapes").rename(process.programs / "stapes-as-it-is")
        cases = "\n".join(
            f'  {verb}) exec stapes-as-it-is "$@" {shlex.join(less)};;'
            for verb, less in _LESS.items()
        )
        wrapper = process.programs / "stapes"
        wrapper.write_text(
            f'#!/bin/sh\ncase "$1" in\n{cases}\n  *) exec stapes-as-it-is "$@";;\nesac\n'
        )
        wrapper.chmod(0o755)
        for name in ("pip", "ray", "torchrun"):  # no test installs, and none starts a cluster
            refusal = process.programs / name
            refusal.write_text("#!/bin/sh\necho mark this block as not run >&2\nexit 1\n")
            refusal.chmod(0o755)
        yield process


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache for all pages, no way to any hub."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {"STAPES_CACHE": cache, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}


@pytest.fixture(scope="module")
def finished_run(
    recordings: Path, programs: WarmProcess, environment: dict[str, str]
) -> Callable[[int], Path]:
    """What stands for the finished runs that a page has and does not make, of this width."""

    @functools.cache
    def trained(width: int) -> Path:
        folder = recordings / "runs" / str(width)  # a run names its recordings relative to itself
        settings = ["--set", f"model.width={width}", "--set", "features.n_mels=48"]
        words = ["stapes", "train", "recordings/", "--recipe", "small", *settings]
        done = programs.run([*words, "-o", str(folder)], recordings, environment)
        assert done.returncode == 0, done.stdout
        return folder

    return trained


def _runs_there(page: Path) -> list[str]:
    """Run folders that a page's examples use before they make them."""
    made: set[str] = set()
    there: list[str] = []
    for block in blocks_of(page):
        if block.language not in _RUN or block.reason:
            continue
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            line = line.partition(" # ")[0]
            out = re.search(r"(?:-o|--out|out=)[ \"]*(runs/[\w-]+)", line)
            for run in re.findall(r"\bruns/[\w-]+", line):
                if run not in made and run not in there and not (out and out[1] == run):
                    there.append(run)
            made |= {out[1]} if out else set()
            made |= {f"{run}-int8" for run in re.findall(r"stapes quantize (runs/[\w-]+)", line)}
    return there


@pytest.fixture
def folder_of(
    page: Path, recordings: Path, finished_run: Callable[[int], Path], tmp_path: Path
) -> Path:
    """Where a page is tried: the recordings, and the runs that it takes for granted."""
    for path in recordings.iterdir():
        if path.name != "runs":
            (tmp_path / path.name).symlink_to(path)
    for number, run in enumerate(_runs_there(page)):
        shutil.copytree(finished_run(6 + number % 3), tmp_path / run)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run_as_they_stand(
    page: Path, folder_of: Path, programs: WarmProcess, environment: dict[str, str]
) -> None:
    python = ""  # a page's Python examples continue each other
    to_run = [b for b in blocks_of(page) if b.language in _RUN and not b.reason]
    with contextlib.ExitStack() as stack:
        places: dict[str, str] = {}  # where the servers of the page are
        for block in to_run:
            text = block.text
            if block.server:
                if block.server not in places:
                    words = [*shlex.split(block.server), "--port", "0"]
                    said = stack.enter_context(programs.running(words, folder_of, environment))
                    places[block.server] = _place(said)
                text = text.replace("127.0.0.1:8000", places[block.server])
            if block.language == "sh":
                words = ["bash", "-euo", "pipefail", "-c", text]
            else:
                python += text
                source = folder_of / ".example.py"
                source.write_text(python, encoding="utf-8")
                words = ["python", str(source)]
            done = programs.run(words, folder_of, environment)
            assert done.returncode == 0, f"{block}:\n{text}\n{done.stdout}"
            assert "Traceback" not in done.stdout, f"{block}:\n{done.stdout}"
            assert "urn:stapes:problem" not in done.stdout, f"{block}:\n{done.stdout}"


def _place(said: IO[str]) -> str:
    """Host and port of a server that has just been started."""
    lines = []
    for line in said:
        lines.append(line)
        if found := re.search(r"http://([\w.]+:\d+)", line):
            return found[1]
    pytest.fail("the server did not start:\n" + "".join(lines))


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    assert block.language not in _OTHER_NAMES, f"{block}: call it sh or python, or text"
    if block.reason is not None:
        assert block.language in _RUN, f"{block} is never run: it needs no reason"
    if not block.language:
        assert not re.search(r"^stapes [a-z]", block.text, re.MULTILINE), (
            f"{block} has no language, so nothing runs it"
        )


def _parsed(words: list[str]) -> typer.Context:
    """A command line read by the command itself, without being carried out."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands") or words[:1] == ["--version"], f"no command: {words}"
    return command.make_context("stapes", list(words))


COMMAND_LINES = [
    (block, words)
    for block in EVERY_BLOCK
    if block.language == "sh"
    for words in command_lines(block.text)
] + [(b, words) for b in EVERY_BLOCK if b.server for words in command_lines(b.server)]


@pytest.mark.parametrize(
    ("block", "words"), COMMAND_LINES, ids=[f"{b}-{'-'.join(w[:1])}" for b, w in COMMAND_LINES]
)
def test_command_lines_are_the_commands(block: Block, words: list[str]) -> None:
    try:
        given = _parsed(words).params
    except Exception as error:
        pytest.fail(f"{block}: stapes {shlex.join(words)}: {error}")
    recipe = given.get("recipe")
    if recipe is not None and not recipe.endswith(".toml"):
        assert recipe in config.recipe_names(), f"{block}: there is no recipe {recipe}"
    if recipe is not None and "/" in recipe:
        assert (ROOT / recipe).is_file(), f"{block}: {recipe}"
    if given.get("corpus") is not None:
        assert given["corpus"] in corpus_names(), f"{block}: there is no corpus {given['corpus']}"
    if given.get("overrides") and words[0] == "train":
        known = recipe if recipe in config.recipe_names() else "small"
        config.override_recipe(config.load_recipe(known), given["overrides"])
    if words[0] == "reproduce":
        from stapes.studies import load_study

        study = load_study(given["paper"])
        assert set(given["items"]) <= {*study.items, "all"}, f"{block}: {given['items']}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_names_in_the_text_exist(page: Path) -> None:
    """Commands, options of commands, shipped models and files that a page names in passing."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    verbs = set(typer.main.get_command(app).commands)
    for verb in re.findall(r"`stapes ([a-z]+)\b", prose):
        assert verb in verbs, f"stapes {verb}"
    for name in re.findall(r"`(esc(?:10|50)-\w+|drum-hits)`", prose):
        assert name in {model.name for model in shipped_models()}, name
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        place = (page.parent / target).resolve()
        generated = target.startswith(("commands/", "reference/", "recipe"))
        assert place.exists() or (generated and page.parent.name == "docs"), target
    for name in re.findall(
        r"(?<![\w/-])(?:results|examples|benchmarks|tests|src)/[\w./-]*\w", text
    ):
        assert (ROOT / name).exists(), name


def test_every_page_of_examples_is_known() -> None:
    assert {"README", "first-minute", "your-recordings"} <= {p.stem for p in PAGES_WITH_EXAMPLES}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stapes predict a.onnx b.wav  # heard\n", [["predict", "a.onnx", "b.wav"]]),
        ("make x && stapes cache | head\n", [["cache"]]),
        ("stapes train a/ \\\n  --set b.c='[1, 2]'\n", [["train", "a/", "--set", "b.c=[1, 2]"]]),
        ('R="stapes reproduce p"\n$R table1 > x\n', [["reproduce", "p", "table1"]]),
        ("for x in 1 2; do\n  stapes models $x\ndone\n", [["models", "$x"]]),
    ],
)
def test_command_lines_are_found(text: str, expected: list[list[str]]) -> None:
    assert command_lines(text) == expected
