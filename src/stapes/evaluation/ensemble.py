"""Models averaged: one file made of several, how well it does, and how alike its members answer.

The probabilities of an ensemble are the mean of its members' (Palanisamy, Singhania, Yao 2020:
five runs from different seeds, their softmax averaged).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stapes.bundle import Bundle, load_bundle
from stapes.catalogue import find_model
from stapes.data import Dataset
from stapes.errors import ModelFileError, StapesError
from stapes.evaluation.bootstrap import Interval
from stapes.evaluation.compare import paired_accuracy
from stapes.evaluation.crossval import CrossValidation, FoldPredictions, Spread, pool
from stapes.evaluation.evaluate import evaluate
from stapes.evaluation.metrics import Score, predicted_classes
from stapes.features import BandNormalizer
from stapes.models.ensemble import Ensemble, EnsembleMember
from stapes.models.registry import network_settings

__all__ = [
    "Agreement",
    "EnsembleScore",
    "ensemble",
    "evaluate_members",
    "member_agreement",
    "members_of_run",
    "score_ensemble",
]


# --- one file of several ----------------------------------------------------------------------


def ensemble(models: Sequence[str | Path], *, command: str = "") -> Bundle:
    """One model that predicts the mean of several models' probabilities.

    Networks, recipes, seeds and training parts may differ; labels and their order, front end and
    how audio is cut may not. An ensemble may itself be a member and counts as one. Weights stay as
    they are: if all members are float16, so is the ensemble, else it is float32.

    Args:
        models: two or more model files, or run folders, each of which stands for its one model
            (:func:`members_of_run` finds all of a run).
        command: the command line, for the model file.

    Returns:
        The model, to be saved by :func:`stapes.save_bundle`. Its recipe is the first member's;
        ``metadata["members"]`` says of each where it comes from: digest of its file, network,
        recipe, split, seed, accuracy and data.

    Raises:
        StapesError: fewer than two models, one of them twice, an int8 one, or one that does not fit
            the first.
        ModelFileError: a file that is missing or damaged, or that holds NaN.
    """
    if len(models) < 2:
        raise StapesError(
            "An ensemble needs two models or more; to average all models of one run, give its "
            "folder to 'stapes ensemble' with --members."
        )
    paths = [_model_file(Path(model)) for model in models]
    bundles = [load_bundle(path) for path in paths]
    digests: dict[str, Path] = {}
    for path, bundle in zip(paths, bundles, strict=True):
        _refuse_unusable(path, bundle)
        _refuse_other(path, bundle, paths[0], bundles[0])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in digests:
            raise StapesError(
                f"{path}: the same model as {digests[digest]}; give each member of an ensemble "
                "once."
            )
        digests[digest] = path
    first = bundles[0]
    channels, bins, _ = first.normalizer.mean.shape
    half = all(bundle.precision == "float16" for bundle in bundles)
    return replace(
        first,
        normalizer=BandNormalizer(channels, bins).eval(),
        network=Ensemble([EnsembleMember(b.normalizer, b.network) for b in bundles], bins).eval(),
        precision="float16" if half else "float32",
        compact=half,
        metadata=_joint_metadata(bundles, list(digests), command),
    )


def members_of_run(folder: str | Path) -> list[Path]:
    """The models of all folds and seeds of a run, by fold, then seed.

    Raises:
        StapesError: no such models.
    """
    found = [
        (path.parent.parent.name, int(path.parent.name.removeprefix("seed-")), path)
        for path in Path(folder).glob("*/seed-*/model.safetensors")
        if path.parent.name.removeprefix("seed-").isdecimal()
    ]
    if not found:
        raise StapesError(
            f"{folder}: holds no models of folds and seeds; give the folder of 'stapes train'."
        )
    return [path for *_, path in sorted(found)]


def _model_file(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else find_model(path, "safetensors")


def _refuse_unusable(path: Path, bundle: Bundle) -> None:
    if bundle.precision == "int8":
        raise StapesError(
            f"{path}: an int8 model cannot be a member of an ensemble; give the model that it was "
            "made from."
        )
    for part in (bundle.network, bundle.normalizer):
        for name, tensor in part.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ModelFileError(
                    f"{path}: {name} holds values that are not finite (NaN or infinity); train "
                    "this member again, or leave it out."
                )


def _refuse_other(path: Path, bundle: Bundle, first_path: Path, first: Bundle) -> None:
    """Refuse a member whose answers cannot be averaged with the first one's."""
    if bundle.labels != first.labels:
        odd = sorted(set(bundle.labels) ^ set(first.labels))
        what = f"other labels ('{odd[0]}' is in one only)" if odd else "its labels in another order"
        raise StapesError(
            f"{path}: has {what} than {first_path}; the members of an ensemble must be trained on "
            "the same list of classes."
        )
    for word, own, expected in (
        ("front end", bundle.frontend.settings(), first.frontend.settings()),
        ("audio", bundle.recipe.audio.model_dump(), first.recipe.audio.model_dump()),
    ):
        for key in {**expected, **own}:
            if own.get(key) != expected.get(key):
                raise StapesError(
                    f"{path}: its {word} differs from that of {first_path} ({key} = "
                    f"{own.get(key)} instead of {expected.get(key)}); the members of an ensemble "
                    "must hear the same."
                )


def _joint_metadata(
    bundles: Sequence[Bundle], digests: Sequence[str], command: str
) -> dict[str, Any]:
    facts = [bundle.metadata for bundle in bundles]
    metadata: dict[str, Any] = {
        "members": [
            _provenance(bundle, digest) for bundle, digest in zip(bundles, digests, strict=True)
        ]
    }
    data = [fact["data"] for fact in facts if isinstance(fact.get("data"), dict)]
    if len(data) == len(facts):
        if all(one == data[0] for one in data):
            metadata["data"] = data[0]
        else:
            metadata["data"] = {
                **{key: _joined(one.get(key) for one in data)
                   for key in ("name", "licence", "citation")},
                # Of the member that had most: how many there are in all, no member knows.
                "train_clips": max(one.get("train_clips", 0) for one in data),
            }  # fmt: skip
    if "versions" in facts[0]:
        metadata["versions"] = facts[0]["versions"]
    return {**metadata, "command": command} if command else metadata


def _joined(texts: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(text) for text in texts if text))


_KEPT = ("split", "seed", "data", "origin", "teachers", "members")


def _provenance(bundle: Bundle, digest: str) -> dict[str, Any]:
    """What the ensemble's file keeps of a member's metadata."""
    facts: Mapping[str, Any] = bundle.metadata
    settings = network_settings(bundle.network)
    kept = {
        "sha256": digest,
        "network": settings.get("architecture", settings["name"]),
        "recipe": bundle.recipe.name,
        **{key: facts[key] for key in _KEPT if key in facts},
    }
    scored = facts.get("cross_validated_score") or facts.get("score")
    if scored:
        kept["accuracy"] = scored["accuracy"]
    return kept


# --- how well, and how alike ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike the members of an ensemble decide.

    Attributes:
        pairs: part of the clips that two members name alike, mean over the pairs of members.
        unanimous: part of the clips that all members name alike.
        kappa: Cohen's kappa (1960), the agreement beyond that of chance, mean over the pairs; 1 is
            always, 0 as often as by chance. None where it is not defined: all clips got one name.
    """

    pairs: float
    unanimous: float
    kappa: float | None


def member_agreement(probabilities: ArrayLike) -> Agreement:
    """How alike several classifiers decide on the same clips.

    >>> p = [[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]]]  # they differ on the second clip
    >>> member_agreement(p)
    Agreement(pairs=0.5, unanimous=0.5, kappa=0.0)

    Args:
        probabilities: (M, N, K) of M classifiers, 2 or more, on N clips, 1 or more.

    Raises:
        ValueError: another shape.
    """
    p = np.asarray(probabilities)
    if p.ndim != 3 or p.shape[0] < 2 or p.shape[1] < 1:
        raise ValueError(f"probabilities must be (two or more members, clips, K), not {p.shape}")
    n_classes = p.shape[2]
    decisions = np.stack([predicted_classes(one) for one in p])
    pairs, kappas = [], []
    for one, other in itertools.combinations(decisions, 2):
        observed = float((one == other).mean())
        shares = [np.bincount(d, minlength=n_classes) / len(d) for d in (one, other)]
        by_chance = float(shares[0] @ shares[1])
        pairs.append(observed)
        if by_chance < 1:
            kappas.append((observed - by_chance) / (1 - by_chance))
    return Agreement(
        pairs=float(np.mean(pairs)),
        unanimous=float((decisions == decisions[0]).all(0).mean()),
        kappa=float(np.mean(kappas)) if kappas else None,
    )


@dataclass(frozen=True)
class EnsembleScore:
    """An ensemble beside its members.

    Attributes:
        folds: of the members' mean probabilities: every fold, and all clips together, each once.
        members: of each member over the same clips.
        accuracy: of the members: mean, spread and each.
        gain: accuracy of the ensemble less the mean of its members', -1 to 1; its interval
            resamples sources once for all.
        agreement: how alike the members decide.
    """

    folds: CrossValidation
    members: tuple[Score, ...]
    accuracy: Spread
    gain: Interval
    agreement: Agreement

    @property
    def score(self) -> Score:
        """Metrics of the ensemble over all clips, with intervals."""
        return self.folds.pooled

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "score": self.score.to_json(),
            "folds": {
                name: fold.to_json()
                for name, fold in zip(self.folds.names, self.folds.folds, strict=True)
            },
            "members": [asdict(score.accuracy) for score in self.members],
            "members_accuracy": asdict(self.accuracy),
            "gain": asdict(self.gain),
            "agreement": asdict(self.agreement),
        }


def score_ensemble(
    members: Sequence[Sequence[FoldPredictions]], labels: Sequence[str]
) -> EnsembleScore:
    """Average the members' probabilities fold by fold, and score the mean and each member.

    Args:
        members: for each of M members, 2 or more, what it said in each fold; a member is a model,
            or the models of a seed. The folds' names, clips, targets and groups are the same for
            all, in the same order.
        labels: the K class names.

    Raises:
        ValueError: fewer than two members, no clips, or members that judged other clips.
    """
    if len(members) < 2:
        raise ValueError("an ensemble has two members or more")
    first = members[0]
    for member in members:
        if len(member) != len(first) or not all(
            np.array_equal(a.targets, b.targets) and np.array_equal(a.groups, b.groups)
            for a, b in zip(member, first, strict=True)
        ):
            raise ValueError("the members of an ensemble must have judged the same clips")
    averaged = [
        replace(same[0], probabilities=np.mean([one.probabilities for one in same], axis=0))
        for same in zip(*members, strict=True)
    ]
    folds = pool(averaged, labels)
    scores = tuple(pool(member, labels).pooled for member in members)
    every = np.stack([np.concatenate([f.probabilities for f in member]) for member in members])
    together = np.concatenate([fold.probabilities for fold in averaged])
    targets = np.concatenate([fold.targets for fold in first])
    groups = [str(group) for fold in first for group in fold.groups]
    right: NDArray[np.float64] = (every.argmax(2) == targets).mean(0)
    (_, _), (_, gain) = paired_accuracy(
        [right, (together.argmax(1) == targets).astype(np.float64)], groups
    )
    assert gain is not None
    return EnsembleScore(
        folds=folds,
        members=scores,
        accuracy=Spread.of([score.accuracy.value for score in scores]),
        gain=gain,
        agreement=member_agreement(every),
    )


def evaluate_members(
    models: Sequence[str | Path],
    dataset: Dataset | str | Path,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[EnsembleScore, tuple[str, ...]]:
    """Score models and their mean on labelled recordings.

    Args:
        models: as for :func:`ensemble`, with the same labels and front end.
        dataset: recordings that no member was trained on, or where they are.
        cache: folder of the feature cache; none: the user's.
        workers: threads; none: all cores.
        device: where the networks compute.
        progress: called with (stage, done, total).

    Returns:
        The scores, and what could not be read, one sentence each.

    Raises:
        DataError: a label that the models do not know, or no readable recording.
        ConfigError: a device that is not there.
        ModelFileError: a model file that cannot be used.
    """
    found = [
        evaluate(model, dataset, cache=cache, workers=workers, device=device, progress=progress)
        for model in models
    ]
    predictions = [
        [FoldPredictions(one.dataset.name, one.probabilities, one.targets, one.groups)]
        for one in found
    ]
    return score_ensemble(predictions, found[0].labels), found[0].unreadable
