"""Commands and Python examples in processes that have imported everything already.

Starting Python and importing torch takes seconds, and the documentation has a hundred commands. A
process imports once and forks for each of them: the child gets the arguments, folder, environment
and standard streams of the caller, as a program of its own would.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["WarmProcess", "warm_process"]

# What the commands import when they are used. Nothing here may start threads: they would not
# survive the fork.
_IMPORTS = (
    "stapes.cli.app",
    "stapes.training",
    "stapes.evaluation.report",
    "stapes.evaluation.compare",
    "stapes.evaluation.describe",
    "stapes.explain",
    "stapes.compression",
    "stapes.runtime",
    "stapes.shrinking",
    "stapes.deploy.export",
    "torch._dynamo",
    "torch.profiler",
    "torch.onnx._internal.exporter._core",
    "torch._inductor.compile_fx",
    "onnxscript.rewriter",
    "jinja2",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)

_CLIENT = """#!{python} -IS
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    request = {{"kind": {kind!r}, "argv": sys.argv[1:], "cwd": os.getcwd()}}
    request["env"] = dict(os.environ)
    streams = array.array("i", [0, 1, 2]).tobytes()
    message = json.dumps(request).encode() + b"\\n"
    line.sendmsg([message[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    line.sendall(message[1:])
    answer = line.recv(16)
sys.exit(int(answer) if answer else 70)
"""


class WarmProcess:
    """Programs ``stapes`` and ``python`` in :attr:`programs`; put it first on ``PATH``."""

    def __init__(self, folder: Path, imports: Sequence[str] = _IMPORTS) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        address = str(folder / "line")
        self._server = subprocess.Popen(
            [sys.executable, __file__, address, *imports],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._server.stdout is not None
        self._server.stdout.readline()  # it listens
        for kind in ("stapes", "python"):
            program = self.programs / kind
            text = _CLIENT.format(python=sys.executable, address=address, kind=kind)
            program.write_text(text, encoding="utf-8")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        seconds: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that may call those of this one; output and errors come together.

        Args:
            words: program and arguments.
            folder: where it runs.
            environment: variables beyond those of this process.
            seconds: after which it is stopped, with status 124.
        """
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            program = subprocess.Popen(
                words, cwd=folder, env={**os.environ, **environment, "PATH": path},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
            try:
                status = program.wait(seconds)
            except subprocess.TimeoutExpired:
                said.write(f"\nstill running after {seconds:g} s\n")
                status = 124
            with contextlib.suppress(ProcessLookupError):  # what it left in the background, too
                os.killpg(program.pid, signal.SIGTERM)
            program.wait()
            said.flush()
            said.seek(0)
            return subprocess.CompletedProcess(words, status, said.read(), None)

    @contextlib.contextmanager
    def running(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> Iterator[IO[str]]:
        """A program that goes on beside others; gives what it says, and ends with the block."""
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        program = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **environment, "PATH": path}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert program.stdout is not None
        try:
            yield program.stdout
        finally:
            program.terminate()
            program.stdout.close()
            program.wait()

    def close(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._server.wait()


@contextlib.contextmanager
def warm_process(folder: Path) -> Iterator[WarmProcess]:
    """One, ended with the block."""
    process = WarmProcess(folder)
    try:
        yield process
    finally:
        process.close()


def _serve(address: str, imports: Sequence[str]) -> None:
    for name in imports:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(16)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        callers = selectors.DefaultSelector()
        callers.register(door, selectors.EVENT_READ)
        while True:
            for key, _ in callers.select():
                if key.fileobj is not door:
                    # The caller is gone: it has its answer, or somebody stopped it.
                    callers.unregister(key.fileobj)
                    key.fileobj.close()
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGTERM)
                    continue
                line, _ = door.accept()
                ready, go = os.pipe()
                child = os.fork()
                if child == 0:
                    door.close()
                    os.close(ready)
                    _answer(line, go)
                os.close(go)
                os.read(ready, 1)  # it has read what it was asked; what comes now is an end
                os.close(ready)
                callers.register(line, selectors.EVENT_READ, child)


def _answer(line: socket.socket, go: int) -> None:
    """In the child: be the program that was called, then say how it ended."""
    status = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        streams = array.array("i", [0] * 3)
        message, ancillary, _, _ = line.recvmsg(1, socket.CMSG_SPACE(3 * streams.itemsize))
        streams = array.array("i")
        streams.frombytes(ancillary[0][2])
        while not message.endswith(b"\n"):
            message += line.recv(1 << 16)
        os.close(go)
        request = json.loads(message)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = [request["kind"], *request["argv"]]
        status = _become(request["kind"], request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            line.sendall(str(status).encode())
        os._exit(status)


def _become(kind: str, arguments: list[str]) -> int:
    try:
        if kind == "stapes":
            from stapes.cli import main

            main()
            return 0
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            return 0
        source = Path(arguments[0])
        code = compile(source.read_text(encoding="utf-8"), str(source), "exec")
        sys.argv = arguments
        exec(code, {"__name__": "__main__"})
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
