"""``python -m benchmarks``: run them all and write ``RESULTS.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import deployment, features, reduction, start, timeline_memory, training, waveform


def main() -> None:
    """Run every speed and memory benchmark, print each section and write the page."""
    sections = []
    for run in (
        training.main,
        reduction.main,
        features.main,
        waveform.main,
        deployment.main,
        start.main,
        timeline_memory.main,
    ):
        sections.append(run())
        print(sections[-1], flush=True)
    page = (
        "# Benchmarks\n\nWritten by `make bench`. Times depend on the machine; the ratios are "
        "against a baseline measured in the same run.\n\n" + "\n".join(sections)
    )
    path = Path(__file__).with_name("RESULTS.md")
    path.write_text(page, encoding="utf-8")
    sys.stdout.write(f"Written to {path}\n")


if __name__ == "__main__":
    main()
