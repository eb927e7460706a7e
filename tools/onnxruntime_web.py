"""Take the browser's ONNX Runtime from its npm package: python tools/onnxruntime_web.py

Writes src/stapes/web/onnxruntime anew, with the licence texts of the installed Python package
onnxruntime, which the same project publishes under the same licence. To change the version, put the
new one and the ``dist.integrity`` that npm states for it below. Needs npm.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import onnxruntime

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # noqa: E501
FOLDER = Path(__file__).resolve().parent.parent / "src" / "stapes" / "web" / "onnxruntime"
# The smallest build: WebAssembly only, no WebGL, WebGPU or WebNN.
TAKEN = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "npm",
            "--silent",
            "pack",
            f"onnxruntime-web@{VERSION}",
            "--pack-destination",
            folder,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (tarball,) = Path(folder).iterdir()
        digest = hashlib.sha512(tarball.read_bytes()).digest()
        found = "sha512-" + base64.b64encode(digest).decode()
        if found != INTEGRITY:
            raise SystemExit(f"the package's integrity is {found}, not {INTEGRITY}")
        with tarfile.open(tarball) as package:
            for name in TAKEN:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                write(f"{name}.gz", gzip.compress(member.read(), 9, mtime=0))
    for name in LICENCES:
        content = Path(onnxruntime.__file__).with_name(name).read_bytes()
        write(f"{name}.gz", gzip.compress(content, 9, mtime=0))
    write("VERSION", f"onnxruntime-web {VERSION}\n{INTEGRITY}\n".encode())


def write(name: str, content: bytes) -> None:
    (FOLDER / name).write_bytes(content)
    sys.stdout.write(f"{len(content):>10,}  {name}\n")


if __name__ == "__main__":
    main()
