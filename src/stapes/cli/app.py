"""The ``stapes`` command and its verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stapes.cli import (
    cache,
    compare,
    data,
    ensemble,
    evaluate,
    explain,
    export,
    inspect,
    listen,
    models,
    parity,
    predict,
    quantize,
    recipes,
    reproduce,
    serve,
    shrink,
    train,
)

__all__ = ["app"]

app = typer.Typer(
    name="stapes",
    help="Turn a folder of labelled recordings into a sound classifier that fits your device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from stapes import __version__

        sys.stdout.write(f"stapes {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("listen")(listen.listen)
app.command("quantize")(quantize.quantize)
app.command("compare")(compare.compare)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("parity")(parity.parity)
app.command("ensemble")(ensemble.ensemble)
app.command("explain")(explain.explain)
app.command("inspect")(inspect.inspect)
app.command("shrink")(shrink.shrink)
app.command("reproduce")(reproduce.reproduce)
app.command("models")(models.models)
app.command("recipes")(recipes.recipes)
app.command("cache")(cache.cache)
app.add_typer(data.app, name="data")
