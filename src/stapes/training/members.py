"""One model of a run: trained, scored, stored, and found again when the command is repeated."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.compression import Pruner, finish
from stapes.config import Recipe, to_toml
from stapes.data import Clip, Dataset, Scan, Split, write_manifest
from stapes.data.loader import FeatureStore, WithVariants
from stapes.errors import ConfigError, StapesError
from stapes.evaluation.evaluate import store_probabilities
from stapes.evaluation.metrics import score
from stapes.features import BandNormalizer, FrontEnd
from stapes.files import cannot_write, write_text
from stapes.models import int8_structure
from stapes.models.blocks import check_blocks
from stapes.models.tracing import meta_input, run_on_meta
from stapes.training.distillation import Lessons, Teaching
from stapes.training.folders import member_folder
from stapes.training.initialization import (
    describe_origin,
    initialize,
    keep_pruned,
    new_network,
)
from stapes.training.loop import Examples, fit, read_log
from stapes.training.reduction import discard_reduction, reduce_network
from stapes.training.reporter import Reporter
from stapes.training.tensorboard import curves

__all__ = ["Member", "Run", "with_groups"]


@dataclass(frozen=True)
class Member:
    """One trained model of a run.

    Attributes:
        split: what it was trained and tested on; the test part of the final model is empty.
        seed: of its initial weights and its training.
        folder: where its files are.
        bundle: the model.
        history: the training log.
        probabilities: (test clips, K).
    """

    split: Split
    seed: int
    folder: Path
    bundle: Bundle
    history: list[dict[str, Any]]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What all members of one call of :func:`stapes.train` share."""

    folder: Path
    dataset: Dataset
    scans: list[Scan]
    groups: NDArray[np.int64]
    recipe: Recipe
    frontend: FrontEnd
    store: FeatureStore
    accelerator: Accelerator
    reporter: Reporter
    command: str
    tensorboard: bool
    trained: Path | None = None
    """Run folder whose trained networks are taken instead of training (to quantise them)."""
    parent: Bundle | None = None
    """Model that training starts from."""
    teaching: Teaching | None = None
    """What the members' teachers need."""

    def fingerprint(self, split: Split, seed: int) -> str:
        """Of everything that decides a member's weights and its score."""
        digest = hashlib.sha256()
        # Digests say which weights, teachers and impulse responses; where they lie decides nothing.
        elsewhere = {
            "initialization": {"file"},
            "distillation": {"teachers", "sha256"},
            "augment": {"impulse_responses"},
        }
        recipe = self.recipe.model_dump(mode="json", exclude=elsewhere)
        parts: list[Any] = [recipe, list(self.dataset.labels), seed]
        for part in (split.train, split.validation, split.test):
            parts.append([[self.scans[i].digest, self.dataset.clips[i].label] for i in part])
        parts.append(self.groups[split.test].tolist())
        parts.append(self.accelerator.num_processes)
        # Only those that teach this member: teachers may be trained fold by fold, too.
        if self.teaching is not None and self.trained is None:
            parts.append(self.teaching.digests(split.name))
        else:  # they may be gone
            parts.append(list(self.recipe.distillation.sha256))
        digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    def member_folder(self, split: Split, seed: int) -> Path:
        """Where a member's files go."""
        return member_folder(self.folder, split.name, seed)

    def new_network(self, seed: int) -> Any:
        """A network with freshly drawn weights."""
        return new_network(
            self.recipe,
            n_classes=len(self.dataset.labels),
            in_channels=self.frontend.out_channels(self.recipe.audio.channels),
            seed=seed,
            parent=self.parent,
        )

    def refuse_misfit(self) -> None:
        """Find out before any work is done what would stop a training after it.

        Raises:
            ConfigError: windows too short, bands too few, or a size that the network does not take;
                fewer blocks than the recipe says; a network that cannot be quantised, or pruned as
                far as asked.
            ModelFileError: weights to start from that are of another network.
        """
        network = self.new_network(seed=0)
        n_bins, n_frames = self.frontend.n_bins, self.frontend.n_frames(self.store.window)
        needed = network.min_input_size
        if min(n_bins, n_frames) < needed:
            raise ConfigError(
                f"A window of {self.recipe.audio.window_seconds:g} s gives {n_bins} bands and "
                f"{n_frames} frames, and the network needs {needed} of each: raise "
                "audio.window_seconds or features.n_mels, or lower features.hop_length."
            )
        initialization = self.recipe.initialization
        for field in ("blocks", "frozen_blocks"):
            check_blocks(
                getattr(initialization, field) or 0, network.blocks(), f"initialization.{field}"
            )
        initialize(network, self.recipe, self.dataset.labels, parent=self.parent)
        try:
            spectrogram = meta_input(network, (1, network.in_channels, n_bins, n_frames))
            run_on_meta(network, spectrogram)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.recipe.quantization.precision == "int8":
            int8_structure(network)  # not every network has one
        if self.recipe.pruning.method != "none":
            assert not isinstance(self.recipe.training.epochs, str)
            Pruner(network, self.recipe.pruning, self.recipe.training.epochs)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder, so that two commands never write into it at once.

        Raises:
            StapesError: another process trains into it, or it cannot be written to.
        """
        if not self.accelerator.is_main_process:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise StapesError(
                f"{self.folder}: another process is training into this folder; wait for it or "
                "choose another --out."
            ) from None
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    def claim(self, tasks: Sequence[tuple[Split, int]]) -> None:
        """Make the run folder this run's own, or refuse one that belongs to another."""
        plan = {f"{split.name}/seed-{seed}": self.fingerprint(split, seed) for split, seed in tasks}
        path = self.folder / "plan.json"
        if self.accelerator.is_main_process:
            if path.is_file():
                try:
                    old = json.loads(path.read_text(encoding="utf-8"))
                except ValueError:
                    old = None
                if old != plan:
                    raise StapesError(
                        f"{self.folder}: holds a run with other data, recipe, split, seeds or "
                        "number of processes; choose another --out or delete that folder."
                    )
            elif self.folder.is_dir() and any(p.name[0] != "." for p in self.folder.iterdir()):
                # Hidden files do not count: a run killed at its very start leaves one.
                raise StapesError(
                    f"{self.folder}: this folder is not empty and holds no stapes run; choose "
                    "another --out."
                )
            write_text(path, json.dumps(plan, indent=1))
            write_text(self.folder / "recipe.toml", to_toml(self.recipe))
            self._describe_data([split for split, _ in tasks])
            for rest in self.folder.rglob(".*.partial"):  # of runs that were killed while saving
                rest.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def _describe_data(self, splits: Sequence[Split]) -> None:
        """Leave the clips with their sources and parts, so that the run can be taken up again."""
        clips = with_groups(self.dataset, self.groups, np.arange(len(self.dataset)))
        tested = {split.name: split for split in splits if split.test.size}
        for split in tested.values():
            if len(tested) > 1:
                for i in split.test:
                    clips[i] = replace(clips[i], fold=split.name)
                continue
            for word, part in (
                ("train", split.train), ("validation", split.validation), ("test", split.test)
            ):  # fmt: skip
                for i in part:
                    clips[i] = replace(clips[i], split=word)
        write_manifest(self.folder / "clips.csv", clips)
        facts = {key: getattr(self.dataset, key) for key in ("name", "licence", "citation")}
        write_text(self.folder / "data.json", json.dumps(facts, indent=1))

    def member(self, split: Split, seed: int, number: int = 0, count: int = 1) -> Member:
        """Train one model, or take it from disk if it is finished there."""
        folder, fingerprint = self.member_folder(split, seed), self.fingerprint(split, seed)
        path = folder / "model.safetensors"
        title = f"Training {split.name}" if count > 1 else "Training"
        title += f" ({number + 1} of {count})" if count > 1 else ""
        if path.is_file():
            bundle = load_bundle(path)
            if bundle.metadata.get("fingerprint") != fingerprint:
                raise StapesError(f"{path}: belongs to another run; delete it or choose --out.")
            history = read_log(folder / "log.jsonl")
            probabilities = store_probabilities(bundle, self.store, split.test)
            return Member(split, seed, folder, bundle, history, probabilities)

        examples = Examples(
            source=self.store,
            targets=self.dataset.targets,
            train=split.train,
            validation=split.validation,
            n_classes=len(self.dataset.labels),
            frame_rate=self.frontend.frame_rate(self.store.window),
            decibel=self.frontend.decibel(),
            teacher=self._lessons(split, self.store),
        )
        make = self._train if self.trained is None else self._take
        varied = self._with_variants(examples, split)
        network, normalizer, history, owed = make(split, seed, varied, title)
        network, reduction = reduce_network(
            network,
            normalizer,
            examples,
            self.recipe,
            parameters=self._parameters(seed),
            seed=seed,
            folder=folder,
            fingerprint=fingerprint,
            accelerator=self.accelerator,
            reporter=self.reporter,
        )
        draft = Bundle(
            self.frontend,
            normalizer,
            network,
            self.dataset.labels,
            self.recipe,
            precision=self.recipe.quantization.precision,
        )
        probabilities = store_probabilities(draft, self.store, split.test)
        extra = {**owed, "reduction": reduction}
        bundle = self._with_metadata(draft, split, seed, fingerprint, probabilities, extra)
        self.accelerator.wait_for_everyone()  # nobody may still be reading the checkpoint
        if self.accelerator.is_main_process:
            if split.test.size:  # so that 'stapes evaluate' can repeat the score
                test = with_groups(self.dataset, self.groups, split.test)
                write_manifest(folder / "test.csv", test)
            save_bundle(bundle, path)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
            discard_reduction(folder)
        self.accelerator.wait_for_everyone()
        return Member(split, seed, folder, bundle, history, probabilities)

    def _with_variants(self, examples: Examples, split: Split) -> Examples:
        """The training part with its variants; these are computed where the cache lacks them."""
        augment = self.recipe.augment
        if not augment.waveform_variants or self.trained is not None:
            return examples
        with self.accelerator.main_process_first():
            self.store.prepare(
                examples.train,
                variants=augment,
                progress=partial(self.reporter.progress, "Making variants"),
            )
        source = WithVariants(self.store, augment)
        return replace(
            examples,
            source=source,
            targets=source.targets(examples.targets),
            train=source.clips(examples.train),
            originals=len(examples.targets),
            teacher=self._lessons(split, source),
        )

    def _lessons(self, split: Split, source: FeatureStore | WithVariants) -> Lessons | None:
        if self.teaching is None:
            return None
        return self.teaching.lessons(split.name, split.train, source)

    def _parameters(self, seed: int) -> int:
        """Of a network before pruning; nobody asks without."""
        if self.recipe.pruning.method == "none":
            return 0
        return sum(p.numel() for p in self.new_network(seed).parameters())

    def _train(
        self, split: Split, seed: int, examples: Examples, title: str
    ) -> tuple[nn.Module, BandNormalizer, list[dict[str, Any]], dict[str, Any]]:
        """A trained network, its normalisation, its log, and what it has learnt from."""
        folder = self.member_folder(split, seed)
        # First of all: teachers may go while they are not needed any more.
        owed = {
            "origin": describe_origin(self.recipe, self.parent),
            "teachers": [] if self.teaching is None else self.teaching.describe(split.name),
        }
        network = self.new_network(seed)
        initialize(network, self.recipe, self.dataset.labels, parent=self.parent)
        # A pruning of its own decides itself what is zero.
        pruned = self.recipe.pruning.method == "none" and keep_pruned(network)
        normalizer = BandNormalizer(network.in_channels, self.frontend.n_bins)
        if self.parent is None:
            normalizer.fit(self.store.iterate(split.train), self.recipe.normalization.method)
        else:  # its weights have learnt from these statistics
            normalizer.load_state_dict(self.parent.normalizer.state_dict())
        with ExitStack() as stack:
            watchers: list[Callable[[dict[str, Any]], None]] = [
                lambda row: self.reporter.status(_epoch_line(title, row, self.recipe))
            ]

            def tell(row: dict[str, Any]) -> None:
                for watcher in watchers:
                    watcher(row)

            if self.tensorboard and self.accelerator.is_main_process:
                watchers.append(stack.enter_context(curves(folder / "tensorboard")))
            history = fit(
                network,
                normalizer,
                examples,
                self.recipe,
                seed=seed,
                folder=folder,
                fingerprint=self.fingerprint(split, seed),
                accelerator=self.accelerator,
                on_step=lambda done, total, part: self.reporter.progress(title, done + part, total),
                on_epoch=tell,
            )
        network.to("cpu").to(memory_format=torch.contiguous_format)
        if pruned:
            finish(network)
        return network.eval(), normalizer.cpu().eval(), history, owed

    def _take(
        self, split: Split, seed: int, examples: Examples, title: str
    ) -> tuple[nn.Module, BandNormalizer, list[dict[str, Any]], dict[str, Any]]:
        """The same from the run that was trained before."""
        assert self.trained is not None
        source = replace(self, folder=self.trained).member_folder(split, seed)
        bundle = load_bundle(source / "model.safetensors")
        if bundle.precision != "float32":
            raise StapesError(
                f"{source}: is {bundle.precision} already; give the run that was trained."
            )
        if bundle.labels != self.dataset.labels:
            raise StapesError(f"{source}: its classes are not those of the run's recordings.")
        history = read_log(source / "log.jsonl")
        folder = self.member_folder(split, seed)
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        owed = {key: bundle.metadata.get(key) for key in ("origin", "teachers")}
        return bundle.network, bundle.normalizer, history, owed

    def _with_metadata(
        self,
        draft: Bundle,
        split: Split,
        seed: int,
        fingerprint: str,
        probabilities: NDArray[np.float64],
        extra: dict[str, Any],
    ) -> Bundle:
        scored = None
        if split.test.size:
            targets, groups = self.dataset.targets[split.test], self.groups[split.test]
            scored = score(probabilities, targets, groups, self.dataset.labels).to_json()
        used = hashlib.sha256()
        for digest in sorted(self.scans[i].digest for i in split.train):
            used.update(digest.encode())
        # No dates and no times: the same seed gives the same file, byte for byte.
        facts = {
            "fingerprint": fingerprint,
            "seed": seed,
            "split": split.name,
            "score": scored,
            "data": {
                "name": self.dataset.name,
                "train_clips": len(split.train),
                "test_clips": len(split.test),
                "sha256": used.hexdigest(),
                "licence": self.dataset.licence,
                "citation": self.dataset.citation,
            },
            "command": self.command,
            "versions": _versions(),
        }
        return replace(draft, metadata=facts | {k: v for k, v in extra.items() if v})


def _epoch_line(title: str, row: dict[str, Any], recipe: Recipe) -> str:
    text = (
        f"{title}: epoch {row['epoch']}/{recipe.training.epochs}, loss {row['train_loss']:.3f}, "
        f"accuracy {row['train_accuracy']:.3f}"
    )
    if "validation_loss" in row:
        text += (
            f", validation loss {row['validation_loss']:.3f}, "
            f"accuracy {row['validation_accuracy']:.3f}"
        )
    return text


def with_groups(
    dataset: Dataset, groups: NDArray[np.int64], indices: NDArray[np.int64]
) -> list[Clip]:
    """Clips without their declared parts, each with the number of its source."""
    return [
        replace(dataset.clips[i], group=f"source-{groups[i]}", fold=None, split=None)
        for i in indices
    ]


def _versions() -> dict[str, str]:
    names = ("stapes", "torch", "numpy", "soundfile", "soxr")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}
