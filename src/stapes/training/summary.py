"""What a run's report shows, gathered from the run's result."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from stapes.audio import read
from stapes.config import to_toml
from stapes.evaluation.describe import describe_model
from stapes.evaluation.report import (
    DataSummary,
    EpochRecord,
    FoldScore,
    Mistake,
    ReportData,
    TrainingRun,
    worst_mistakes,
)

if TYPE_CHECKING:
    from stapes.training.experiment import TrainResult
    from stapes.training.members import Member

__all__ = ["report_data"]

_MISTAKES = 12


def report_data(result: TrainResult, command: str) -> ReportData:
    """Gather everything that :func:`stapes.evaluation.report.write_report` shows.

    Args:
        result: a finished run.
        command: the command line that repeats it.
    """
    dataset, members = result.dataset, result.members
    folds = zip(result.folds.names, result.folds.folds, strict=True)
    n_seeds = len({member.seed for member in members})
    several = len(members) > 1
    now = datetime.datetime.now().astimezone()
    return ReportData(
        title=f"{dataset.name}: {len(dataset.labels)} classes",
        created=f"{now.day} {now:%B %Y, %H:%M}",
        command=command or "stapes.train(...) from Python",
        recipe=to_toml(result.recipe),
        data=DataSummary(
            name=dataset.name,
            n_clips=len(dataset),
            n_groups=len(np.unique(result.groups)),
            label_counts=dataset.class_counts(),
            hours=sum(scan.duration for scan in result.scans) / 3600,
            sample_rates=dict(Counter(scan.sample_rate for scan in result.scans)),
            licence=dataset.licence,
            citation=dataset.citation,
            notes=result.notes,
        ),
        split=_split_in_words(result),
        score=result.score,
        model=describe_model(members[0].bundle),
        folds=tuple(FoldScore(name, score) for name, score in folds) if several else (),
        n_seeds=n_seeds,
        seeds=result.seeds,
        ensemble=result.ensemble,
        runs=tuple(_training_run(member) for member in members),
        mistakes=tuple(_mistakes(result)),
        versions=members[0].bundle.metadata["versions"],
    )


def _split_in_words(result: TrainResult) -> str:
    names = list(dict.fromkeys(member.split.name for member in result.members))
    sources = "no source recording is on both sides"
    if any("both sides" in note for note in result.notes):
        sources = "some sources are on both sides, see the notes"
    if len(names) > 1:
        return f"Cross-validation over {len(names)} folds, each tested once; {sources}."
    split = result.members[0].split
    validation = f", {len(split.validation)} for validation" if split.validation.size else ""
    return (
        f"{len(split.train)} clips for training{validation}, {len(split.test)} held out for the "
        f"score ({names[0]}); {sources}."
    )


def _training_run(member: Member) -> TrainingRun:
    return TrainingRun(
        name=f"{member.split.name}, seed {member.seed}",
        epochs=tuple(
            EpochRecord(
                epoch=row["epoch"],
                train_loss=row["train_loss"],
                train_accuracy=row["train_accuracy"],
                validation_loss=row.get("validation_loss"),
                validation_accuracy=row.get("validation_accuracy"),
                learning_rate=row["learning_rate"],
            )
            for row in member.history
        ),
    )


def _mistakes(result: TrainResult) -> list[Mistake]:
    first_seed = result.members[0].seed
    members = [member for member in result.members if member.seed == first_seed]
    clips = np.concatenate([member.split.test for member in members])
    probabilities = np.concatenate([member.probabilities for member in members])
    targets = result.dataset.targets[clips]
    found = []
    for i in worst_mistakes(probabilities, targets, _MISTAKES):
        clip = result.dataset.clips[clips[i]]
        frontend = members[0].bundle.frontend
        audio = result.recipe.audio
        start = clip.start or 0.0
        end = min(clip.end, start + 10.0) if clip.end is not None else start + 10.0
        waveform = read(
            clip.path, sample_rate=frontend.sample_rate, channels=audio.channels, start=start,
            end=end,
        )  # fmt: skip
        with torch.inference_mode():
            spectrogram = frontend(torch.from_numpy(waveform)[None])[0, 0].numpy()
        predicted = int(probabilities[i].argmax())
        found.append(
            Mistake(
                name=clip.name,
                label=clip.label,
                predicted=result.dataset.labels[predicted],
                probability=float(probabilities[i, predicted]),
                spectrogram=spectrogram,
                frequencies=frontend.band_frequencies().numpy(),
                seconds=waveform.shape[-1] / frontend.sample_rate,
                audio=waveform.mean(0),
                sample_rate=frontend.sample_rate,
            )
        )
    return found
