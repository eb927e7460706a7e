"""Recordings answered by the machines of a Ray cluster, with Ray Data.

The list is handed out in bundles of some recordings; each bundle is one row of a data set that
workers with a model each turn into answers. Ray gives a bundle whose worker or machine dies to
another one. What comes back is written where the command runs, into the same journal that the
engine of one machine fills, so that the two may take turns on one archive.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stapes.archive.answers import Answer, End, Job, Rows, Settings, Task
from stapes.archive.local import Workers
from stapes.errors import AudioError, MissingPackageError, StapesError

__all__ = ["answer_on_ray"]

_WAVE_PARTS = 100  # each of them has an open file
_WAVE = 20_000
"""Recordings of a data set: beginning one costs some seconds, and the next waits for its end."""

_BUNDLE = 8
"""Recordings that travel together: a task of Ray costs some milliseconds."""

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # asks for a decision that is not ours
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # told of a dead worker, one can do nothing about it
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
}


def answer_on_ray(
    job: Job, tasks: Iterator[Task], workers: int | None, address: str | None
) -> Generator[Answer]:
    """Answers of workers on a cluster, as they come.

    Args:
        job: what is asked; its archive is under the same path on every machine, the model is sent.
        tasks: recordings.
        workers: number of them, a CPU each; none: as many as the cluster has CPUs.
        address: of the cluster; none: ``RAY_ADDRESS``, else one is started on this machine and
            ended with the sweep.

    Yields:
        As :func:`stapes.archive.local.answer_here`.

    Raises:
        MissingPackageError: Ray is not installed.
        StapesError: no cluster at the address, or it cannot do the work.
    """
    first = next(tasks, None)
    if first is None:
        return
    tasks = itertools.chain([first], tasks)
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import ray
            import ray.data
        except ModuleNotFoundError:
            raise MissingPackageError('--engine ray needs Ray: pip install "stapes[ray]"') from None
        with _cluster(ray, address, workers):
            model = Path(job.model).read_bytes()
            count = workers or _cpus(ray)
            while wave := _next_wave(tasks):
                yield from _wave(ray, job, model, wave, count)


def _next_wave(tasks: Iterator[Task]) -> list[Task]:
    wave: list[Task] = []
    for task in tasks:
        wave.append(task)
        if len(wave) == _WAVE or task.part - wave[0].part >= _WAVE_PARTS:
            break
    return wave


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray reads its settings when it is imported, and hands them to what it starts."""
    ours = {name: value for name, value in _QUIET.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Be connected to a cluster; one that this process is connected to already is used as it is."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": workers, "include_dashboard": False}
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise StapesError(
            f"--ray-address {address}: no Ray cluster answers there ({reason}); start one with "
            "'ray start --head', or leave the address out to use this machine."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ask whether anyone is at an address: Ray itself would try for minutes, and talk about it.

    Raises:
        OSError: nobody is.
        ValueError: the address is none of the cluster's head.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdigit():
        raise ValueError("an address is that of the head node, such as 10.0.0.1:6379")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _wave(ray: Any, job: Job, model: bytes, wave: list[Task], workers: int) -> Iterator[Answer]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    bundles = [wave[start : start + _BUNDLE] for start in range(0, len(wave), _BUNDLE)]
    workers = min(workers, len(bundles))
    answered = ray.data.from_items(
        [{"tasks": json.dumps(bundle)} for bundle in bundles],
        override_num_blocks=len(bundles),  # a bundle is what is done again where a worker dies
    ).map(
        _Worker,
        fn_constructor_args=(dataclasses.asdict(job), model),
        num_cpus=1,
        concurrency=workers,
    )
    try:
        for row in answered.iter_rows():
            for kind, *answer in json.loads(row["answers"]):
                yield Rows(*answer) if kind == "Rows" else End(*answer)
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise StapesError(
            f"The Ray cluster gave up ({cause.rstrip('.')}); what was answered is kept, and the "
            "same command goes on from there."
        ) from None


class _Worker:
    """Lives on a machine of the cluster, and answers bundles by a process of its own.

    A recording that crashes the decoder crashes that process, and has an error in the end: Ray
    would try it for ever.
    """

    def __init__(self, job: dict[str, Any], model: bytes) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="stapes-")
        path = Path(self._folder.name, "model.onnx")
        path.write_bytes(model)
        job = {**job, "settings": Settings(**job["settings"]), "model": str(path)}
        if not Path(job["archive"]).is_dir():
            raise AudioError(
                job["archive"],
                "this machine of the cluster has no such folder; the archive has to be on storage "
                "that all machines see under the same path.",
            )
        self._workers = Workers(Job(**job), 1)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        tasks = (Task(*task) for task in json.loads(row["tasks"]))
        found = [[type(answer).__name__, *answer] for answer in self._workers.answer(tasks)]
        return {"answers": json.dumps(found)}
