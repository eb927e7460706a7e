"""``stapes explain``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stapes.cli.explain_networks import AGAINST_HELP, similarity, weight_change
from stapes.cli.explain_recording import attribution
from stapes.cli.terminal import Terminal, print_table

__all__ = ["explain"]


def explain(
    model: Annotated[Path, typer.Argument(help="Model file or run folder.")],
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings or folders of them [the test recordings of the run]."),
    ] = None,
    receptive_field: Annotated[
        bool,
        typer.Option(
            "--receptive-field",
            help="How far one unit really looks in frequency and time, before and after damping.",
        ),
    ] = False,
    integrated_gradients: Annotated[
        bool,
        typer.Option(
            "--integrated-gradients",
            help="Which places of a recording's spectrogram speak for a label, or against it.",
        ),
    ] = False,
    cam: Annotated[
        bool,
        typer.Option(
            "--grad-cam", help="Where in a feature map a label was found: quicker and coarser."
        ),
    ] = False,
    label: Annotated[
        str | None, typer.Option(help="To explain [the most probable one of the recording].")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(help="Module whose output --grad-cam looks at [the last feature map]."),
    ] = None,
    baseline: Annotated[
        Literal["quiet", "silence", "mean"] | None,
        typer.Option(
            help="What stands for nothing: the quietest level of the recording, digital silence, "
            "or the mean of the training data [quiet]."
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all-windows",
            help="Explain every window of the recording, not the one with most of the label.",
        ),
    ] = False,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", help="Write what speaks for the label as a sound: .wav."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Of what speaks for the label, left in --audio, 0 to 1 [0.5]."),
    ] = None,
    weights: Annotated[
        bool,
        typer.Option("--weight-change", help="How far training moved the weights of each layer."),
    ] = False,
    alike: Annotated[
        bool,
        typer.Option(
            "--similarity",
            help="How like those of other networks its representations are, block by block.",
        ),
    ] = False,
    against: Annotated[list[str] | None, typer.Option(help=AGAINST_HELP)] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--most",
            help="Use at most this many recordings "
            "[64; 400 for --similarity; all those given for --integrated-gradients, --grad-cam].",
            min=1,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the random signs of the measurement, or of weights.", min=0)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Picture: .png, .svg or .pdf [receptive-field.png ...]."),
    ] = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="Of the numbers.")] = "text",
) -> None:
    """Show what a model listens to, and what training changed in it.

    stapes explain --receptive-field RUN draws receptive-field.png and prints its numbers;
    stapes explain --integrated-gradients RUN dog.wav draws what in dog.wav made the model decide.
    """
    asked = {
        "--receptive-field": receptive_field,
        "--integrated-gradients": integrated_gradients,
        "--grad-cam": cam,
        "--weight-change": weights,
        "--similarity": alike,
    }
    what = _one_of(asked)
    _only_for(what, {"--against": against or None}, ("--weight-change", "--similarity"))
    attributing = ("--integrated-gradients", "--grad-cam")
    _only_for(what, {"--block": block}, ("--grad-cam",))
    _only_for(
        what,
        {"--label": label, "--baseline": baseline, "--all-windows": every or None,
         "--audio": audio, "--share": share},
        attributing,
    )  # fmt: skip
    on_sound = tuple(name for name in asked if name != "--weight-change")
    _only_for(what, {"RECORDINGS": recordings or None, "--most": most}, on_sound)
    out = out or Path(f"{what.removeprefix('--')}.png")
    failed = 0
    if what == "--receptive-field":
        failed = _receptive_field(model, recordings or [], most or 64, seed, out, format)
    elif what in attributing:
        failed = attribution(
            model, recordings or [], what.removeprefix("--"), label=label, block=block,
            baseline=baseline, every=every, audio=audio, share=share, most=most, seed=seed, out=out,
            format=format,
        )  # fmt: skip
    elif what == "--weight-change":
        weight_change(model, against or [], seed, out, format)
    elif what == "--similarity":
        failed = similarity(model, against or [], recordings or [], most, seed, out, format)
    if failed:
        sys.stderr.write(f"{failed} of the recordings could not be read.\n")
        raise typer.Exit(1)


def _one_of(asked: dict[str, bool]) -> str:
    """The explanation that was asked for, by its option.

    Raises:
        StapesError: none, or several at once.
    """
    from stapes.errors import StapesError

    names = [name for name, wanted in asked.items() if wanted]
    if not names:
        raise StapesError(
            f"Say what to explain, with one of {', '.join(asked)}: "
            "stapes explain --receptive-field MODEL."
        )
    if len(names) > 1:
        raise StapesError(f"{' and '.join(names)} do not go together: ask for one at a time.")
    return names[0]


def _only_for(what: str, options: dict[str, object], where: tuple[str, ...]) -> None:
    """Refuse options that were given (are not none) with an explanation that has none such.

    Raises:
        StapesError: names the option and where it belongs.
    """
    from stapes.errors import StapesError

    for name, value in options.items():
        if value is not None and what not in where:
            raise StapesError(f"{name} does not go with {what}: it is for {' and '.join(where)}.")


def _receptive_field(
    model: Path, recordings: list[Path], most: int, seed: int, out: Path, format: str
) -> int:
    """Measure, draw and print; gives the number of recordings that could not be read."""
    from stapes.bundle import load_bundle
    from stapes.explain import draw_receptive_field, receptive_field_on_recordings
    from stapes.explain.figures import check_figure_name
    from stapes.explain.recordings import find_recordings, recordings_of_run

    check_figure_name(out)
    bundle = load_bundle(model)
    clips = find_recordings(recordings, most) if recordings else recordings_of_run(model, most)
    bad = []
    with Terminal() as terminal:

        def unreadable(error: Exception) -> None:
            bad.append(error)
            terminal.note(f"Error: {error}")

        found = receptive_field_on_recordings(
            bundle,
            clips,
            seed=seed,
            unreadable=unreadable,
            progress=lambda done, total: terminal.progress("Measuring", done, total),
        )
    count = f"{found.field.n_clips} recording{'s' * (found.field.n_clips != 1)}"
    name = str(model) if len(str(model)) < 50 else f"…{str(model)[-49:]}"
    draw_receptive_field(found, out, title=f"{name}, {count}")
    tree: dict[str, Any] = found.summary()
    if format == "json":
        sys.stdout.write(json.dumps({**tree, "picture": str(out)}, indent=1) + "\n")
        return len(bad)
    theory = tree["theoretical"]
    sys.stdout.write(
        f"Gradient of the unit at {tree['unit_hz']:.0f} Hz and {tree['unit_seconds']:.2f} s on "
        f"{count}; Hz are cut at the edges of the spectrogram.\n\n"
    )
    rows = [["theoretical", "all", *_cells(theory)]]
    after = "effective" if found.damping is None else f"with damping {found.damping}"
    for title, key in (("before damping", "before_damping"), (after, "effective")):
        if tree[key] is not None:
            rows.append([title, "95 %", *_cells(tree[key]["share_95"])])
            rows.append(["", "50 %", *_cells(tree[key]["share_50"])])
            width = tree[key]["deviation"]
            rows.append(["", "deviation", f"{width['bins']:.1f}", "", f"{width['frames']:.1f}",
                         f"{width['seconds']:.2f}"])  # fmt: skip
    print_table(["field", "energy", "bins", "Hz", "frames", "s"], rows, right={1, 2, 3, 4, 5})
    sys.stdout.write(f"\npicture  {out}\n")
    return len(bad)


def _cells(part: dict[str, Any]) -> list[str]:
    low, high = part["hz"]
    return [
        str(part["bins"]), f"{low:.0f} to {high:.0f}", str(part["frames"]), f"{part['seconds']:.2f}"
    ]  # fmt: skip
