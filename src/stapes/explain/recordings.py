"""Which recordings to explain a model on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stapes.audio import find_audio, in_batches
from stapes.bundle import Bundle
from stapes.data import Clip, load_dataset
from stapes.errors import AudioError, DataError, StapesError

__all__ = ["find_recordings", "recordings_of_run", "spectrograms"]

_BATCH = 4  # windows at once: the graph of a wide network takes some 100 MB for each


def recordings_of_run(model: str | Path, most: int | None = None) -> list[Clip]:
    """The recordings that the run of a model was tested on, each once.

    Args:
        model: a run folder, or a model file inside one.
        most: keep at most this many, evenly spread over the list.

    Raises:
        StapesError: no run folder, or one without a test part.
        DataError: recordings are missing.
    """
    model = Path(model)
    folder = model if model.is_dir() else model.parent
    # A member's own part; else those of all members, also for the model trained on everything.
    tables = [folder / "test.csv"] if (folder / "test.csv").is_file() else []
    for run in (folder, folder.resolve().parent.parent):
        if not tables and (run / "plan.json").is_file():
            tables = sorted(run.glob("*/seed-*/test.csv"))
    if not tables:
        raise StapesError(
            f"{model}: this model does not lie in the folder of a finished run, so its test "
            "recordings are not known; name some recordings, or folders of them, after it."
        )
    found: dict[tuple[Path, float | None, float | None], Clip] = {}
    for table in tables:
        for clip in load_dataset(table, min_classes=1).clips:
            found.setdefault((clip.path.resolve(), clip.start, clip.end), clip)
    return _spread(list(found.values()), most)


def find_recordings(given: Sequence[str | Path], most: int | None = None) -> list[Clip]:
    """Recordings by name, and all that lie in folders.

    Args:
        given: files and folders.
        most: keep at most this many, evenly spread over the list.

    Raises:
        DataError: a folder without recordings, or nothing given.
    """
    paths: list[Path] = []
    for path in map(Path, given):
        inside = find_audio(path) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no recordings found in this folder.")
        paths += inside
    if not paths:
        raise DataError("No recordings were given, and at least one is needed.")
    return _spread([Clip(path, "") for path in paths], most)


def _spread(clips: list[Clip], most: int | None) -> list[Clip]:
    if most is None or most >= len(clips):
        return clips
    return [clips[int(i)] for i in np.linspace(0, len(clips) - 1, most).round()]


def spectrograms(
    bundle: Bundle,
    clips: Sequence[Clip | str | Path],
    unreadable: Callable[[AudioError], None] | None = None,
) -> Iterator[Tensor]:
    """What the network of a model is given: one window of each recording, its middle.

    Args:
        bundle: the model.
        clips: recordings.
        unreadable: told about each recording that cannot be read, which is then left out; none:
            the first one is an error.

    Yields:
        (B, C, F, T) normalised spectrograms, in the order of the recordings.

    Raises:
        AudioError: a recording cannot be read.
    """
    audio, frontend = replace(bundle.audio, longer="crop"), bundle.frontend

    def windows() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for given in clips:
            clip = given if isinstance(given, Clip) else Clip(Path(given), "")
            try:
                yield from audio.cut(clip.path, start=clip.start or 0.0, end=clip.end)
            except AudioError as error:
                if unreadable is None:
                    raise
                unreadable(error)

    normalizer = bundle.normalizer.eval()
    for _, waveforms in in_batches(windows(), _BATCH):
        with torch.no_grad():
            yield normalizer(frontend(torch.from_numpy(waveforms)))
