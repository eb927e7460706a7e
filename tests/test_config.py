from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stapes.config import (
    LogMelConfig,
    PerceptualMelConfig,
    Recipe,
    TimmConfig,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_source,
    resolve,
    to_toml,
)
from stapes.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_toml(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe
    assert recipe_source(name).startswith("#"), "a recipe opens with its source and command"


def test_text_with_quotes_and_newlines_survives_toml() -> None:
    recipe = Recipe(name='a "b" \\ c ü', description="two\nlines\r\x00\x7f\t.")
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "Did you mean 'epochs'"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=many", "training.epochs"),
        ("trainin.epochs=3", "Did you mean 'training'"),
        ("features.n_fftt=3", "Did you mean 'n_fft'"),
        ("model.rho=22", "model.rho"),
        ("training.learning_rate=nan", "learning_rate"),
        ("training.early_stopping_epochs=3", "validation_fraction"),
        ("audio.sample_rate=-1", "audio.sample_rate"),
        ("epochs", "section.field=value"),
        ("log_mel=1", "unknown field 'log_mel'"),
        ("features.log_mel=1", "unknown field 'features.log_mel'"),
        ("audio.window_seconds=0.0001", "audio.window_seconds"),
        ("name.x=1", "'name' is a value"),
        ("pruning.method=magnitude", "^small: pruning: method = .* needs either keep"),
        ("pruning.keep=0.5", "keep and keep_parameters prune nothing"),
    ],
)
def test_a_wrong_override_names_the_field(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("small", [override])


def test_overrides_take_toml_values_and_none() -> None:
    recipe = load_recipe(
        "small",
        ["training.epochs=3", "model.damping=none", "model.blocks=[2, 1, 0]", "audio.longer=crop"],
    )
    assert recipe.training.epochs == 3
    assert recipe.model.damping is None
    assert recipe.model.blocks == (2, 1, 0)
    assert recipe.audio.longer == "crop"


def test_unknown_recipe_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        load_recipe("smal")
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(broken)


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nepochs = 2\n")
    assert load_recipe(path).name == "mine"


def test_resolve_fills_in_what_the_data_say() -> None:
    recipe = Recipe(name="x")
    esc = resolve(recipe, sample_rates=[44100] * 9 + [8000], durations=[5.0] * 10)
    assert esc.audio.sample_rate == 22050
    assert esc.audio.window_seconds == 5.0
    assert isinstance(esc.features, LogMelConfig)
    assert (esc.features.n_fft, esc.features.hop_length) == (1024, 551)
    assert esc.features.n_mels == 128
    assert esc.training.epochs == 100
    digits = resolve(recipe, sample_rates=[8000], durations=[0.3] * 9 + [2.0])
    assert digits.audio.sample_rate == 8000
    assert digits.audio.window_seconds == 0.3
    assert isinstance(digits.features, LogMelConfig)
    assert (digits.features.n_fft, digits.features.hop_length) == (512, 64)
    assert digits.features.n_mels == 64
    many = resolve(recipe, sample_rates=[8000], durations=[0.3] * 800)
    assert many.training.epochs == 40


def test_resolve_leaves_given_values_alone() -> None:
    recipe = load_recipe(
        "small",
        ["audio.sample_rate=16000", "audio.window_seconds=1.5", "features.n_fft=400",
         "features.hop_length=160", "features.n_mels=40", "training.epochs=3",
         "pruning.ramp_epochs=1"],
    )  # fmt: skip
    assert resolve(recipe, sample_rates=[], durations=[]) == recipe


def test_what_is_filled_in_is_valid() -> None:
    """A resolved recipe goes into the model file and is checked when that is read."""
    slow = resolve(Recipe(name="x"), sample_rates=[200], durations=[60.0])
    assert slow.audio.sample_rate == 1000
    assert parse_recipe(slow.model_dump(mode="json")) == slow
    late = load_recipe("small", ["training.averaging=equal", "training.averaging_start_epoch=90"])
    with pytest.raises(ConfigError, match="averaging_start_epoch must be below epochs"):
        resolve(late, sample_rates=[8000], durations=[1.0] * 400)


def test_sections_that_do_not_go_together_are_one_sentence() -> None:
    late = ["pruning.method=channels", "pruning.keep=0.5", "pruning.start_epoch=3"]
    with pytest.raises(ConfigError) as caught:
        load_recipe("small", [*late, "training.epochs=2"])
    assert str(caught.value) == (
        "small: recipe: pruning.start_epoch + pruning.ramp_epochs lies beyond training.epochs = 2."
    )


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\ufeff[training]\nepochs = 2\n", encoding="utf-8")
    assert load_recipe(path).training.epochs == 2


def test_another_kind_of_section_keeps_what_both_kinds_have() -> None:
    recipe = load_recipe("transfer", ["features.name=perceptual_mel"])
    assert recipe.features == PerceptualMelConfig(n_mels=128)  # and not the "auto" of a log-mel
    recipe = load_recipe("quick", ["model.name=timm", "model.architecture=resnet50"])
    assert recipe.model == TimmConfig(architecture="resnet50", damping=0.1)
    with pytest.raises(ConfigError, match=r"model\.rho"):
        load_recipe("quick", ["model.name=timm", "model.rho=3"])
