"""Sweeping an archive: is it the same after ``kill -9``, how fast is it, what does it need?

Of a folder of recordings (2,000 clips of ESC-50 are meant) every attempt starts a sweep, kills it
at a random moment, starts it again, and compares the whole folder, byte for byte, with that of one
undisturbed run; and counts what was answered twice. On Ray, a worker is killed instead. Speeds are
those of interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import soundfile

from benchmarks._common import machine
from stapes.archive import Settings, sweep
from stapes.audio import find_audio, read
from stapes.catalogue import shipped_models
from stapes.runtime import load

# Says how many recordings it answered itself.
PROGRAM = """
import sys
from stapes.archive import Settings, sweep
from stapes.audio import quiet_decoders
model, archive, out, engine = sys.argv[1:]
count = 0
def told(progress):
    global count
    count += 1
with quiet_decoders():
    sweep(model, archive, out, Settings(timeline=True), part_files=150, workers=2, engine=engine,
          on_progress=told)
print(count)
"""


def _start(model: str, archive: Path, out: Path, engine: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, model, str(archive), str(out), engine]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _answered(out: Path) -> int:
    """Recordings that a folder holds the answers of."""
    count = 0
    sealed = set()
    ledger = out / "_sweep" / "sealed.jsonl"
    if ledger.is_file():
        for line in ledger.read_bytes().splitlines():
            try:
                part, recordings, *_ = json.loads(line[9:])
            except ValueError:
                continue
            sealed.add(part)
            count += recordings
    for path in out.glob("_sweep/journal-*.jsonl"):
        if int(path.stem[-5:]) not in sealed:
            try:
                lines = path.read_bytes().split(b"\n")[:-1]
            except FileNotFoundError:  # sealed in this moment
                continue
            count += sum(b'["end"' in line for line in lines)
    return count


def kills(model: str, archive: Path, attempts: int, engine: str, seed: int = 0) -> str:
    """Kill sweeps (on Ray, workers) at random moments, and say how they ended."""
    rng = random.Random(seed)
    total = len(find_audio(archive))
    same = twice = 0
    moments = []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name, "whole")
        sweep(model, archive, whole, Settings(timeline=True), part_files=150, workers=2)
        expected = _tree(whole)
        for attempt in range(attempts):
            out = Path(name, str(attempt))
            process = _start(model, archive, out, engine)
            wanted = rng.randrange(1, total)
            while process.poll() is None and _answered(out) < wanted:
                time.sleep(0.05)
            time.sleep(rng.random() * 0.1)
            if engine == "ray":
                _kill_worker(process, rng)
                said, _ = process.communicate()
                moments.append(wanted)
                twice += int(said) - total
            else:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                before = _answered(out)
                moments.append(before)
                again, _ = _start(model, archive, out, engine).communicate()
                twice += before + int(again) - total
            same += _tree(out) == expected
            print(f"{engine} {attempt}: {moments[-1]} of {total}, {same} same", flush=True)
            shutil.rmtree(out)
    who = "a worker killed" if engine == "ray" else "killed and started again"
    return (
        f"{attempts} sweeps of {total} recordings with {model} on the {engine} engine, {who} after "
        f"{min(moments)} to {max(moments)} of them: {same} of {attempts} folders identical to an "
        f"undisturbed run's, byte for byte; {twice} recordings kept twice or answered again after "
        "they were kept.\n"
    )


def _kill_worker(process: subprocess.Popen[str], rng: random.Random) -> None:
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "_Worker" in " ".join(child.cmdline())
    ]
    rng.choice(workers).send_signal(signal.SIGKILL)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(archive: Path, count: int, rounds: int) -> str:
    """A table: recordings a second and times real time of each shipped model."""
    clips = find_audio(archive)[:count]
    seconds = sum(soundfile.info(clip).duration for clip in clips)
    lines = [
        "| model | 1 worker: recordings/s | times real time | 2 workers | 2 threads | decoding |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as name:
        part = Path(name, "clips")
        part.mkdir()
        for clip in clips:
            (part / clip.name).symlink_to(clip.resolve())
        for model in shipped_models():
            rows = []
            for number in range(rounds):
                rows.append(_round(model.name, part, clips, Path(name, f"{model.name}{number}")))
            one, two, threads, decoding = (
                statistics.median(row) for row in zip(*rows, strict=True)
            )
            lines.append(
                f"| {model.name} | {count / one:.0f} | {seconds / one:.0f} | x {two:.2f} | "
                f"x {threads:.2f} | {decoding:.0%} |"
            )
            print(lines[-1], flush=True)
    return (
        f"{count} recordings of {seconds / count:.1f} s, median of {rounds} rounds; the columns of "
        "two are against one worker (two threads: against one thread, without files of answers), "
        "decoding is its part of the time of one.\n\n" + "\n".join(lines) + "\n"
    )


def _round(
    model: str, archive: Path, clips: list[Path], out: Path
) -> tuple[float, float, float, float]:
    """Seconds of one worker, and as ratios: two workers, two threads, decoding alone."""

    def swept(workers: int) -> float:
        """Between the first answer and the last, for all recordings."""
        took = 0.0

        def told(progress: object) -> None:
            nonlocal took
            took = progress.elapsed  # type: ignore[attr-defined]

        sweep(model, archive, out / str(workers), workers=workers, on_progress=told)
        return took * len(clips) / (len(clips) - 1)

    classifier = load(model, threads=1)
    audio = classifier.audio
    few = clips[:150]
    for _ in range(3):
        classifier.classify(few[0])

    def threads() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(classifier.classify, few))

    def decode() -> None:
        for clip in few:
            read(clip, sample_rate=audio.sample_rate, channels=audio.channels)

    one, two = swept(1), swept(2)
    alone = _seconds(lambda: [classifier.classify(clip) for clip in few])
    return one, one / two, alone / _seconds(threads), _seconds(decode) / alone


def growth(model: str, archive: Path) -> str:
    """How time and memory grow with the number of recordings and with their length."""
    clips = find_audio(archive)
    lines = ["| archive | seconds | memory of the command, MiB | of a worker, MiB |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (500, 2000, 8000):
            part = folder / f"clips{count}"
            part.mkdir()
            for number in range(count):
                clip = clips[number % len(clips)].resolve()
                (part / f"{number:06d}{clip.suffix}").symlink_to(clip)
            lines.append(f"| {count} clips | {_cost(model, part, folder / f'o{count}')} |")
            print(lines[-1], flush=True)
        part = folder / "empty"
        part.mkdir()
        for number in range(50_000):
            (part / f"{number:06d}.wav").touch()
        lines.append(f"| 50000 empty files | {_cost(model, part, folder / 'oe')} |")
        print(lines[-1], flush=True)
        for hours in (1, 8):
            part = folder / f"long{hours}"
            part.mkdir()
            _write_long(part / "long.flac", hours)
            lines.append(f"| one of {hours} h | {_cost(model, part, folder / f'l{hours}')} |")
            print(lines[-1], flush=True)
    return f"{model}, two workers, timeline:\n\n" + "\n".join(lines) + "\n"


def _write_long(path: Path, hours: int) -> None:
    rng = np.random.default_rng(0)
    minute = (rng.standard_normal(60 * 16_000) * 3000).astype(np.int16)
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(60 * hours):
            file.write(minute)


def _cost(model: str, archive: Path, out: Path) -> str:
    process = _start(model, archive, out, "local")
    peak = {"command": 0, "worker": 0}

    def watch() -> None:
        ours = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak["command"] = max(peak["command"], ours.memory_info().rss)
                for child in ours.children():
                    peak["worker"] = max(peak["worker"], child.memory_info().rss)
            except psutil.Error:
                pass
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    took = _seconds(process.communicate)
    watcher.join()
    return f"{took:.1f} | {peak['command'] >> 20} | {peak['worker'] >> 20}"


def main() -> None:
    """Run what is asked for, and print a markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("archive", type=Path, help="folder of recordings")
    parser.add_argument("--model", default="esc10-32kB")
    parser.add_argument("--kills", type=int, default=0, help="sweeps to kill")
    parser.add_argument("--ray", type=int, default=0, help="sweeps on Ray to kill a worker of")
    parser.add_argument("--speed", type=int, default=0, help="recordings to time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sections = [f"## Archives\n\n{machine()}.\n"]
    if given.kills:
        sections.append(kills(given.model, given.archive, given.kills, "local"))
    if given.ray:
        sections.append(kills(given.model, given.archive, given.ray, "ray"))
    if given.speed:
        sections.append(speed(given.archive, given.speed, given.rounds))
    if given.growth:
        sections.append(growth(given.model, given.archive))
    print("\n".join(sections))


if __name__ == "__main__":
    main()
