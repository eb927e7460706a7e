"""Recipes: everything that decides what a training run computes, as strict TOML.

A recipe is frozen, every field has a meaning and a range, and an unknown key is refused with the
valid ones listed. ``"auto"`` values are filled in from the data by :func:`resolve` before
training; the resolved recipe is what the run folder and the model file keep, so that a run can be
repeated without the data's help.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stapes.errors import ConfigError, UnknownNameError

__all__ = [
    "AudioConfig",
    "AugmentConfig",
    "CpResNetConfig",
    "InitializationConfig",
    "LogMelConfig",
    "NormalizationConfig",
    "PerceptualMelConfig",
    "PruningConfig",
    "QuantizationConfig",
    "Recipe",
    "ThreeWindowLogMelConfig",
    "TimmConfig",
    "TrainingConfig",
    "load_recipe",
    "recipe_names",
    "recipe_source",
    "resolve",
    "sections",
    "to_toml",
]

Auto = Literal["auto"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AudioConfig(_Strict):
    """How a recording becomes waveforms of one length."""

    sample_rate: Annotated[int, Field(ge=1000, le=384_000)] | Auto = Field(
        "auto", description="Hz; auto: what most recordings have, from 1000 to 22050"
    )
    channels: Literal[1, 2] = Field(
        1, description="1: mixed down to mono; 2: stereo, a mono recording is copied"
    )
    window_seconds: Annotated[float, Field(ge=0.01, le=600)] | Auto = Field(
        "auto",
        description="length the network sees; auto: holds 9 of 10 recordings, at most 10 s",
    )
    hop_seconds: Annotated[float, Field(ge=0.001, le=600)] | None = Field(
        None, description="step between windows of a longer recording; none: the window itself"
    )
    shorter: Literal["pad", "repeat"] = Field(
        "pad", description="a recording shorter than the window: zeros after it, or repeated"
    )
    longer: Literal["window", "crop"] = Field(
        "window", description="a longer one: all windows, scores averaged; or its middle only"
    )


class LogMelConfig(_Strict):
    """Plain log-mel spectrogram, as librosa computes it (see ``stapes.features.LogMel``)."""

    name: Literal["log_mel"] = "log_mel"
    n_fft: Annotated[int, Field(ge=16, le=65_536)] | Auto = Field(
        "auto", description="samples; auto: the power of two that spans 46 ms or more"
    )
    win_length: Annotated[int, Field(ge=1)] | None = Field(None, description="samples; none: n_fft")
    hop_length: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="samples; auto: about 200 frames a window, 8 ms to 25 ms"
    )
    n_mels: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        "auto", description="mel bands; auto: 128, or 64 below 16 kHz"
    )
    f_min: Annotated[float, Field(ge=0)] = Field(0.0, description="Hz")
    f_max: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Hz; none: half the sample rate"
    )
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney"] | None = "slaney"
    scaling: Literal["db", "log"] = Field(
        "db", description="db: 10 log10(max(power, amin)); log: ln(power + log_offset)"
    )
    amin: Annotated[float, Field(gt=0)] = Field(1e-10, description="smallest power, for db")
    top_db: Annotated[float, Field(gt=0)] | None = Field(
        None, description="clip this far below the loudest bin of each channel, for db"
    )
    log_offset: Annotated[float, Field(gt=0)] = Field(1e-6, description="for log")


class PerceptualMelConfig(_Strict):
    """A-weighted mel spectrogram of Koutini et al. 2020 (``stapes.features.PerceptualMel``)."""

    name: Literal["perceptual_mel"] = "perceptual_mel"
    n_fft: Annotated[int, Field(ge=16, le=65_536)] = 2048
    hop_length: Annotated[int, Field(ge=1)] = 512
    n_mels: Annotated[int, Field(ge=1, le=1024)] = 256


class ThreeWindowLogMelConfig(_Strict):
    """Three log-mels of Palanisamy et al. 2020 (``stapes.features.ThreeWindowLogMel``)."""

    name: Literal["three_window_log_mel"] = "three_window_log_mel"
    n_fft: Annotated[int, Field(ge=16, le=65_536)] = 4410
    n_mels: Annotated[int, Field(ge=1, le=1024)] = 128
    n_frames: Annotated[int, Field(ge=1)] = Field(
        250, description="frames that each of the three is resized to"
    )


FeaturesConfig = Annotated[
    LogMelConfig | PerceptualMelConfig | ThreeWindowLogMelConfig, Field(discriminator="name")
]


class NormalizationConfig(_Strict):
    """How a spectrogram is brought to the range that the network expects."""

    method: Literal["band", "channel", "imagenet", "none"] = Field(
        "band",
        description="statistics of the training part; band: mean 0 and deviation 1 in each band; "
        "channel: in each channel; imagenet: each channel's range taken for that of an image, less "
        "ImageNet's mean, by its deviation; none: left as it is",
    )


class CpResNetConfig(_Strict):
    """Receptive-field-regularised ResNet of Koutini et al."""

    name: Literal["cp_resnet"] = "cp_resnet"
    rho: Annotated[int, Field(ge=0, le=21)] = Field(7, description="receptive-field control")
    width: Annotated[int, Field(ge=1, le=2048)] = Field(
        32, description="channels of the first stage; the next two have twice and four times"
    )
    blocks: tuple[
        Annotated[int, Field(ge=1, le=4)],
        Annotated[int, Field(ge=0, le=4)],
        Annotated[int, Field(ge=0, le=4)],
    ] = Field((4, 3, 0), description="residual blocks kept in each stage")
    damping: Annotated[float, Field(ge=0, le=1)] | None = Field(
        0.1, description="frequency damping at a kernel's edge; none: no damping"
    )
    decomposition: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="Z: a convolution of the blocks becomes 1x1 to C/Z channels, kxk, 1x1 to C; "
        "none: it stays one",
    )


class TimmConfig(_Strict):
    """Any image network of timm, by its name there."""

    name: Literal["timm"] = "timm"
    architecture: str = Field(
        "tf_efficientnet_lite0",
        min_length=1,
        description="timm's name, such as resnet50, densenet201 or inception_v3",
    )
    blocks: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="cut the network off after this many blocks; none: all of it"
    )
    copy_mono: bool = Field(
        True, description="a single spectrogram becomes all three colours; else one input channel"
    )
    damping: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="frequency damping at a kernel's edge; none: no damping"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="in front of the head")


ModelConfig = Annotated[CpResNetConfig | TimmConfig, Field(discriminator="name")]


class InitializationConfig(_Strict):
    """The weights that training starts from."""

    weights: Literal["random", "imagenet", "model"] = Field(
        "random",
        description="imagenet: of timm's hub, or of file; model: of the stapes model in file",
    )
    file: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="weights (.safetensors or a torch state dict), or a stapes model"
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="what the weights' file must have; filled in by training"
    )
    blocks: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description="blocks from the input on that take the weights, the others are drawn; none: "
        "all but the classes that are new",
    )
    frozen_blocks: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="blocks from the input on that do not learn"
    )

    @model_validator(mode="after")
    def _file_where_due(self) -> InitializationConfig:
        if self.weights == "random" and (self.file, self.blocks) != (None, None):
            raise ValueError(
                'file and blocks go with weights = "imagenet" or "model"; random weights need none'
            )
        if self.weights == "model" and self.file is None:
            raise ValueError('weights = "model" needs file, a stapes model (or use --init MODEL)')
        return self


class AugmentConfig(_Strict):
    """Random changes of the training recordings, and of each batch after the feature cache."""

    pitch_semitones: Annotated[float, Field(ge=0, le=24)] = Field(
        0.0, description="a variant's pitch, shifted by up to this much either way"
    )
    time_stretch: tuple[
        Annotated[float, Field(ge=0.25, le=4)], Annotated[float, Field(ge=0.25, le=4)]
    ] = Field((1.0, 1.0), description="range of a variant's speed; above 1 is faster")
    waveform_variants: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="variants of each training recording with other pitch and speed, cached"
    )
    variants_per_epoch: Literal["one", "all"] = Field(
        "one", description="of a recording and its variants one at random, or each of them"
    )

    mixup_alpha: Annotated[float, Field(ge=0)] = Field(
        0.3, description="Beta(alpha, alpha) of mixup, the larger part kept; 0: off"
    )
    time_roll_seconds: Annotated[float, Field(ge=0)] = Field(
        0.0, description="circular shift along time by up to this much either way"
    )
    largest_speed: Annotated[float, Field(ge=1, le=4)] = Field(
        1.0, description="played faster or slower by up to this factor, at the same pitch"
    )
    frequency_shift_fraction: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="shift along frequency by up to this part of the bands either way"
    )
    time_masks: Annotated[int, Field(ge=0, le=20)] = Field(0, description="SpecAugment")
    time_mask_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="longest time mask, as a part of the window"
    )
    frequency_masks: Annotated[int, Field(ge=0, le=20)] = Field(0, description="SpecAugment")
    frequency_mask_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="widest frequency mask, as a part of the bands"
    )
    gain_db: Annotated[float, Field(ge=0, le=60)] = Field(
        0.0, description="level changed by up to this much either way"
    )
    equalizer_db: Annotated[float, Field(ge=0, le=60)] = Field(
        0.0, description="smooth colouring over the bands by up to this much either way"
    )
    noise_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="part of the examples that get stationary coloured noise"
    )
    noise_db: tuple[float, float] = Field(
        (-70.0, -20.0), description="range of the noise's level, from the loudest bin"
    )

    @model_validator(mode="after")
    def _variants_differ(self) -> AugmentConfig:
        if self.time_stretch[0] > self.time_stretch[1]:
            raise ValueError("time_stretch must be the lower speed, then the higher one")
        changes = self.pitch_semitones > 0 or self.time_stretch != (1.0, 1.0)
        if changes != (self.waveform_variants > 0):
            raise ValueError(
                "waveform_variants goes with pitch_semitones or time_stretch: give both, or neither"
            )
        return self


class TrainingConfig(_Strict):
    """The optimiser, its schedule and when to stop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | Auto = Field(
        "auto", description="passes over the clips; auto: 32,000 clips in all, 15 to 100 epochs"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    decayed: Literal["kernels", "all"] = Field(
        "kernels", description="what decays; all: norms and biases, too"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="rate of a block, as a part of the rate of the block behind it"
    )
    schedule: Literal["constant", "cosine", "one_cycle", "linear", "step"] = Field(
        "one_cycle",
        description="after warm-up and the constant epochs; step: times step_factor every "
        "step_epochs",
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    constant_epochs: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epochs at the full rate before linear or cosine decay begins"
    )
    decay_end_epoch: Annotated[float, Field(gt=0)] | None = Field(
        None, description="epoch at which the decay has reached its end; none: the last"
    )
    final_rate_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="rate at the end of the decay, as a part of learning_rate"
    )
    step_epochs: Annotated[int, Field(ge=1)] = 30
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weighting: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class counts the same in the loss"
    )
    gradient_clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest norm of the gradient"
    )
    averaging: Literal["none", "ema", "equal"] = Field(
        "none", description="of weights; equal: the mean of snapshots (SWA)"
    )
    averaging_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="of the exponential mean, per step"
    )
    averaging_start_epoch: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs before those that the equal mean takes snapshots of"
    )
    averaging_every_epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="epochs between snapshots of the equal mean"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 or float16 on a GPU"
    )
    early_stopping_epochs: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="stop after this many epochs without a lower validation loss and keep the "
        "best; none: the last epoch counts",
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="part of the training clips set aside for validation"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.early_stopping_epochs is not None and self.validation_fraction == 0:
            raise ValueError(
                "early_stopping_epochs needs validation_fraction above 0: the test part never "
                "decides when to stop"
            )
        if (
            self.averaging == "equal"
            and self.epochs != "auto"
            and self.averaging_start_epoch >= self.epochs
        ):
            raise ValueError("averaging_start_epoch must be below epochs")
        return self


class PruningConfig(_Strict):
    """Weights set to zero, or channels taken out, while the network trains."""

    method: Literal["none", "magnitude", "channels"] = Field(
        "none",
        description="magnitude: the smallest weights become zero; channels: whole channels are "
        "taken out and the tensors shrink",
    )
    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="part of the network's parameters that is left; or keep_parameters"
    )
    keep_parameters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="number of parameters that is left (not zero); or keep"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="compared over the whole network, or within each layer"
    )
    ramp: Literal["exponential", "linear"] = Field(
        "exponential", description="how the number falls from all to what is left"
    )
    start_epoch: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epoch at which the ramp begins"
    )
    ramp_epochs: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="length of the ramp; 0: in one shot; auto: half of the epochs left"
    )
    returning: bool = Field(
        True, description="pruned weights keep learning and may come back until the ramp ends"
    )

    @model_validator(mode="after")
    def _one_target(self) -> PruningConfig:
        if self.method != "none" and (self.keep is None) == (self.keep_parameters is None):
            raise ValueError(
                f'method = "{self.method}" needs either keep (such as 0.25) or keep_parameters '
                "(such as 250000)"
            )
        if self.method == "none" and (self.keep, self.keep_parameters) != (None, None):
            raise ValueError(
                'keep and keep_parameters prune nothing with method = "none"; choose "magnitude" '
                'or "channels"'
            )
        return self


class QuantizationConfig(_Strict):
    """Precision in which the finished network is stored and computes."""

    precision: Literal["float32", "float16", "int8"] = Field(
        "float32",
        description="float16: weights rounded, batch norm kept; int8: weights and activations",
    )
    calibration_clips: Annotated[int, Field(ge=1)] = Field(
        256, description="training clips that set the ranges of the activations, for int8"
    )
    aware: Literal["auto", "never", "always"] = Field(
        "auto",
        description="fine-tune with quantisation in the loop, for int8; auto: when accuracy on the "
        "validation part (else the training part) drops by more than half a point",
    )
    aware_epochs: Annotated[int, Field(ge=1)] = Field(5, description="length of that fine-tuning")
    aware_learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class Recipe(_Strict):
    """All that decides what a run computes, besides the data and the seed."""

    name: str = Field(min_length=1)
    description: str = ""
    audio: AudioConfig = AudioConfig()
    features: FeaturesConfig = LogMelConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = CpResNetConfig()
    initialization: InitializationConfig = InitializationConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    pruning: PruningConfig = PruningConfig()
    quantization: QuantizationConfig = QuantizationConfig()

    @model_validator(mode="after")
    def _pruning_fits(self) -> Recipe:
        pruning, epochs = self.pruning, self.training.epochs
        if pruning.method == "channels" and getattr(self.model, "decomposition", None) is not None:
            raise ValueError(
                'pruning.method = "channels" does not go with model.decomposition; prune weights '
                "by magnitude, or choose a smaller width"
            )
        if pruning.method != "none" and epochs != "auto":
            ramp = 0.0 if pruning.ramp_epochs == "auto" else pruning.ramp_epochs
            if pruning.start_epoch + ramp > epochs:
                raise ValueError(
                    "pruning.start_epoch + pruning.ramp_epochs lies beyond training.epochs = "
                    f"{epochs}"
                )
        return self

    def cp_resnet(self, what: str) -> CpResNetConfig:
        """The model section, for what is only there for CP-ResNet.

        Raises:
            ConfigError: another network; names ``what`` needs the CP-ResNet.
        """
        if not isinstance(self.model, CpResNetConfig):
            raise ConfigError(
                f"{what} knows only CP-ResNets, and model.name is '{self.model.name}'; choose a "
                "recipe with model.name = 'cp_resnet'."
            )
        return self.model


def sections() -> list[tuple[str, type[BaseModel]]]:
    """The sections of a recipe with their fields; one of several kinds comes once for each."""
    found: list[tuple[str, type[BaseModel]]] = []
    for name, field in Recipe.model_fields.items():
        if name in _KINDS:
            found += [(name, kind) for kind in _KINDS[name].values()]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found.append((name, field.annotation))
    return found


def recipe_names() -> list[str]:
    """Names of the recipes that come with stapes."""
    folder = resources.files("stapes.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def recipe_source(name: str) -> str:
    """Text of a shipped recipe, comments included.

    Raises:
        UnknownNameError: no recipe has that name.
    """
    if name not in recipe_names():
        raise UnknownNameError("recipe", name, recipe_names())
    return (resources.files("stapes.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.field=value`` overrides.

    Args:
        name_or_path: a shipped recipe's name or a TOML file.
        overrides: such as ``"training.epochs=30"``; the value is TOML (a bare word is a string,
            ``none`` is no value).

    Raises:
        ConfigError: unreadable file, unknown field, value out of range.
        UnknownNameError: neither a file nor a shipped recipe.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix == ".toml" or path.is_file():
        try:
            source = path.read_text(encoding="utf-8-sig")  # editors may put a mark in front
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read this recipe ({error}).") from None
    else:
        source = recipe_source(text)
    try:
        tree = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{text}: not valid TOML ({error}).") from None
    tree.setdefault("name", path.stem)
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, text)


def parse_recipe(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe that is already a mapping (from TOML or a model file's header).

    Raises:
        ConfigError: names the field, what is wrong with it and what would be valid.
    """
    try:
        return Recipe.model_validate(_none_words_to_none(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def _none_words_to_none(tree: Any) -> Any:
    # TOML has no null: the word "none" stands for it where a field allows no value.
    nullable = {
        "hop_seconds", "win_length", "f_max", "mel_norm", "top_db", "damping", "decay_end_epoch",
        "gradient_clip", "early_stopping_epochs", "decomposition", "keep", "keep_parameters",
        "file", "sha256", "blocks",
    }  # fmt: skip
    if isinstance(tree, Mapping):
        return {
            key: None if key in nullable and value == "none" else _none_words_to_none(value)
            for key, value in tree.items()
        }
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    field, separator, raw = override.partition("=")
    keys = field.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: write section.field=value, e.g. training.epochs=30.")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: '{key}' is a value, not a section.")
    if keys[:-1] and keys[0] in _KINDS and keys[-1] == "name" and node.get("name") != value:
        # What both kinds have stays, as far as the new one can take it.
        kind = _KINDS[keys[0]].get(str(value), _Strict)
        for field in list(node):
            try:
                kind.model_validate(_none_words_to_none({field: node[field]}))
            except ValidationError:
                del node[field]
    node[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        # Drop the unions' tags from the path: a user never wrote "log_mel" there.
        location = [str(key) for key in item["loc"] if key not in _UNION_TAGS]
        if len(location) > 1 and location[1] in _KINDS.get(location[0], {}):
            del location[1]
        field = ".".join(location) or "recipe"
        if item["type"] == "extra_forbidden":
            valid = _fields_beside(location)
            close = difflib.get_close_matches(location[-1], valid, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            parts.append(f"unknown field '{field}'.{hint} Valid here: {', '.join(valid)}.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            # Where fields do not go together, the input is all of them: the message names them.
            whole = isinstance(item["input"], Mapping | _Strict)
            subject = field if whole else f"{field} = {item['input']!r}"
            parts.append(f"{subject}: {message[0].lower()}{message[1:]}.")
    return " ".join(dict.fromkeys(parts))


# Sections of several kinds, told apart by their field "name".
_KINDS: Mapping[str, Mapping[str, type[_Strict]]] = MappingProxyType(
    {
        "features": MappingProxyType(
            {
                "log_mel": LogMelConfig,
                "perceptual_mel": PerceptualMelConfig,
                "three_window_log_mel": ThreeWindowLogMelConfig,
            }
        ),
        "model": MappingProxyType({"cp_resnet": CpResNetConfig, "timm": TimmConfig}),
    }
)
_UNION_TAGS = {"constrained-int", "constrained-float", "literal['auto']"}


def _fields_beside(location: Sequence[str]) -> list[str]:
    if len(location) == 1:
        return sorted(Recipe.model_fields)
    if location[0] in _KINDS:
        return sorted({f for kind in _KINDS[location[0]].values() for f in kind.model_fields})
    section = Recipe.model_fields[location[0]].annotation
    return sorted(section.model_fields) if isinstance(section, type) else []


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML that :func:`load_recipe` reads back to an equal recipe."""
    lines = []
    sections = []
    for key, value in recipe.model_dump(mode="python").items():
        if isinstance(value, dict):
            sections.append(f"\n[{key}]")
            sections.extend(f"{k} = {_toml_value(v)}" for k, v in value.items())
        else:
            lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join(lines + sections) + "\n"


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML takes the escapes of JSON, and wants one more.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return repr(value)


def resolve(recipe: Recipe, *, sample_rates: Iterable[int], durations: Iterable[float]) -> Recipe:
    """Fill in every ``"auto"`` from the data.

    The sample rate becomes the most common one, from 1000 to 22050 Hz. The window holds nine of
    ten recordings (the 90th percentile of their durations), rounded up to a tenth of a second,
    between 0.25 s and 10 s. The hop gives about 200 frames a window, between 8 ms and 25 ms. The
    FFT is the power of two that spans 46 ms or more; mel bands are 128, or 64 below 16 kHz. The
    epochs make 32,000 clips in all, counted before any are held out, so that training takes about
    as long for a few hundred clips as for two thousand and every fold gets the same number. A
    pruning ramp takes half of the epochs from its start on.

    Args:
        recipe: with or without ``"auto"`` values.
        sample_rates: of the recordings, Hz.
        durations: of the recordings, seconds.

    Raises:
        ConfigError: nothing to learn from, or values that do not go together once filled in.
    """
    audio, features = recipe.audio, recipe.features
    durations = sorted(durations)
    rate: int | str = audio.sample_rate
    if rate == "auto":
        counts: dict[int, int] = {}
        for value in sample_rates:
            limited = min(max(value, 1000), 22_050)
            counts[limited] = counts.get(limited, 0) + 1
        if not counts:
            raise ConfigError("audio.sample_rate = 'auto' needs at least one recording.")
        rate = max(counts, key=lambda r: (counts[r], r))
    window = audio.window_seconds
    if window == "auto":
        if not durations:
            raise ConfigError("audio.window_seconds = 'auto' needs at least one recording.")
        ninth = durations[math.ceil(0.9 * len(durations)) - 1]
        window = min(10.0, max(0.25, math.ceil(round(ninth * 10, 6)) / 10))
    audio = audio.model_copy(update={"sample_rate": rate, "window_seconds": window})
    if isinstance(features, LogMelConfig):
        update: dict[str, int] = {}
        hz, seconds = int(rate), float(window)
        if features.n_fft == "auto":
            update["n_fft"] = 2 ** math.ceil(math.log2(0.046 * hz))
        if features.n_mels == "auto":
            update["n_mels"] = 128 if hz >= 16_000 else 64
        if features.hop_length == "auto":
            update["hop_length"] = max(1, round(min(0.025, max(0.008, seconds / 200)) * hz))
        features = features.model_copy(update=update)
    training = recipe.training
    if training.epochs == "auto":
        epochs = min(100, max(15, math.ceil(32_000 / max(1, len(durations)))))
        training = training.model_copy(update={"epochs": epochs})
    pruning = recipe.pruning
    if pruning.ramp_epochs == "auto":
        assert not isinstance(training.epochs, str)
        left = max(0.0, training.epochs - pruning.start_epoch)
        pruning = pruning.model_copy(update={"ramp_epochs": left / 2})
    filled = {"audio": audio, "features": features, "training": training, "pruning": pruning}
    return parse_recipe(recipe.model_copy(update=filled).model_dump(), recipe.name)
