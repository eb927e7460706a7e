"""``stapes explain --integrated-gradients`` and ``--grad-cam``: what in a recording decided."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stapes.cli.terminal import Terminal, print_table

if TYPE_CHECKING:
    from stapes.bundle import Bundle
    from stapes.explain import AudiblePart, Explanation, Faithfulness

__all__ = ["attribution"]

_TOLERANCE = 0.01  # of the completeness error
_METHODS = {"integrated-gradients": "Integrated Gradients", "grad-cam": "Grad-CAM"}


def attribution(
    model: Path,
    recordings: list[Path],
    method: str,
    *,
    label: str | None,
    block: str | None,
    baseline: str | None,
    every: bool,
    audio: Path | None,
    share: float | None,
    most: int | None,
    seed: int,
    out: Path,
    format: str,
) -> int:
    """Explain, draw, make audible and print; gives the number of recordings not read.

    Args:
        method: ``"integrated-gradients"`` or ``"grad-cam"``.
    """
    from stapes.bundle import load_bundle
    from stapes.errors import AudioError, StapesError
    from stapes.explain.audible import check_sound_name
    from stapes.explain.figures import check_figure_name
    from stapes.explain.recordings import find_recordings

    check_figure_name(out)
    if audio is not None:
        check_sound_name(audio)
    elif share is not None:
        raise StapesError("--share goes with --audio: it says how much of the sound to leave.")
    if share is not None and not 0 < share <= 1:
        raise StapesError(f"--share {share:g}: must be above 0 and up to 1.")
    if not recordings:
        raise StapesError(
            f"Name the recording to explain: stapes explain --{method} {model} RECORDING."
        )
    bundle = load_bundle(model)
    clips = find_recordings(recordings, most)
    numbered = every or len(clips) > 1
    trees: list[dict[str, Any]] = []
    failed = 0
    with Terminal() as terminal:

        def progress(done: int, total: int) -> None:
            terminal.progress(f"Explaining in {total} steps", done, total)

        for clip in clips:
            found = _explanations(
                bundle, clip, method, label, block, baseline or "quiet", every, progress
            )
            while True:
                try:
                    explained = next(found)
                except StopIteration:
                    break
                except AudioError as error:
                    failed += 1
                    terminal.note(f"Error: {error}")
                    break
                number = len(trees) + 1 if numbered else None
                trees.append(
                    _told(bundle, explained, seed, share or 0.5, _numbered(out, number),
                          audio and _numbered(audio, number))
                )  # fmt: skip
                if format == "text":
                    _print(trees[-1], method, first=len(trees) == 1)
    if format == "json":
        sys.stdout.write(json.dumps({"explanations": trees}, indent=1) + "\n")
    return failed


def _explanations(
    bundle: Bundle,
    clip: Any,
    method: str,
    label: str | None,
    block: str | None,
    baseline: Any,
    every: bool,
    progress: Any,
) -> Iterator[Explanation]:
    from stapes.explain import explain_recording, explain_windows

    options: dict[str, Any] = {
        "method": method.replace("-", "_"),
        "label": label,
        "block": block,
        "baseline": baseline,
        "tolerance": _TOLERANCE,
        "progress": progress,
    }
    if every:
        yield from explain_windows(bundle, clip, **options)
    else:
        yield explain_recording(bundle, clip, **options)


def _numbered(path: Path, number: int | None) -> Path:
    """``out.png``, or ``out-3.png``."""
    return path if number is None else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _told(
    bundle: Bundle, explained: Explanation, seed: int, share: float, out: Path, audio: Path | None
) -> dict[str, Any]:
    """Measure and write what belongs to one explanation; its numbers."""
    from torch import nn

    from stapes.explain import audible_part, draw_attribution, faithfulness, write_sound

    measured: Faithfulness = faithfulness(
        nn.Sequential(bundle.normalizer, bundle.network),
        explained.spectrogram,
        explained.baseline,
        explained.values,
        explained.index,
        seed=seed,
    )
    part: AudiblePart | None = None
    if audio is not None:
        part = audible_part(bundle, explained, share)
        write_sound(part.waveform, part.sample_rate, audio)
    draw_attribution(
        explained, out, faithfulness=measured, mask=None if part is None else part.mask
    )
    tree: dict[str, Any] = {**explained.summary(), **measured.summary()}
    if part is not None:
        tree["audible"] = {**part.summary(), "sound": str(audio)}
    return {**tree, "picture": str(out)}


def _print(tree: dict[str, Any], method: str, *, first: bool) -> None:
    other = "" if tree["label"] == tree["predicted"] else f" (the model says {tree['predicted']})"
    lines = [
        f"{tree['recording']}, {tree['start']:.2f} to {tree['end']:.2f} s",
        f"{tree['label']}: probability {tree['probability']:.3f}{other}",
    ]
    if "steps" in tree:
        error = tree["completeness_error"]
        lines.append(
            f"{_METHODS[method]}, {tree['steps']} steps: the values add up to the logit's "
            f"difference of {tree['logit_difference']:.2f} but for {100 * error:.2g} %"
        )
        if error > _TOLERANCE:
            lines.append(
                "More steps did not bring that below 1 %: the network's answer jumps on the way "
                "from the baseline (8-bit networks do), or hardly differs from it. Try another "
                "--baseline."
            )
    else:
        lines.append(f"{_METHODS[method]} at {tree['block'] or 'the feature map'}")
    sys.stdout.write(("" if first else "\n") + "\n".join(lines) + "\n\n")
    print_table(
        ["", "area", "moved elsewhere", "random order", ""],
        [
            [kind, *(f"{tree[kind][key]:.3f}" for key in ("area", "moved", "random")), good]
            for kind, good in (("deletion", "lower is better"), ("insertion", "higher is better"))
        ],
        right={1, 2, 3},
    )
    sys.stdout.write(f"\npicture  {tree['picture']}\n")
    if "audible" in tree:
        part = tree["audible"]
        sys.stdout.write(
            f"sound    {part['sound']}: {100 * part['share_of_attribution']:.0f} % of what speaks "
            f"for {tree['label']}, in {100 * part['share_of_places']:.1f} % of the places\n"
            f"         probability of it alone {part['probability']:.3f}, "
            f"of the rest alone {part['rest_probability']:.3f}\n"
        )
    sys.stdout.flush()
