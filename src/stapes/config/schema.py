"""What a recipe may say: its sections, their fields with ranges and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stapes.errors import ConfigError

__all__ = [
    "KINDS",
    "AudioConfig",
    "AugmentConfig",
    "CpResNetConfig",
    "DistillationConfig",
    "InitializationConfig",
    "LogMelConfig",
    "NormalizationConfig",
    "PerceptualMelConfig",
    "PruningConfig",
    "QuantizationConfig",
    "Recipe",
    "Strict",
    "ThreeWindowLogMelConfig",
    "TimmConfig",
    "TrainingConfig",
    "sections",
]

Auto = Literal["auto"]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AudioConfig(Strict):
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


class LogMelConfig(Strict):
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
    mel_scale: Literal["slaney", "htk"] = Field(
        "slaney", description="linear up to 1 kHz, then logarithmic; htk: 2595 log10(1 + f / 700)"
    )
    mel_norm: Literal["slaney"] | None = Field(
        "slaney", description="every filter has unit area; none: a peak of 1"
    )
    scaling: Literal["db", "log"] = Field(
        "db", description="db: 10 log10(max(power, amin)); log: ln(power + log_offset)"
    )
    amin: Annotated[float, Field(gt=0)] = Field(1e-10, description="smallest power, for db")
    top_db: Annotated[float, Field(gt=0)] | None = Field(
        None, description="clip this far below the loudest bin of each channel, for db"
    )
    log_offset: Annotated[float, Field(gt=0)] = Field(1e-6, description="for log")


class PerceptualMelConfig(Strict):
    """A-weighted mel spectrogram of Koutini et al. 2020 (``stapes.features.PerceptualMel``)."""

    name: Literal["perceptual_mel"] = "perceptual_mel"
    n_fft: Annotated[int, Field(ge=16, le=65_536)] = Field(2048, description="samples of a window")
    hop_length: Annotated[int, Field(ge=1)] = Field(512, description="samples")
    n_mels: Annotated[int, Field(ge=1, le=1024)] = Field(256, description="mel bands")


class ThreeWindowLogMelConfig(Strict):
    """Three log-mels of Palanisamy et al. 2020 (``stapes.features.ThreeWindowLogMel``)."""

    name: Literal["three_window_log_mel"] = "three_window_log_mel"
    n_fft: Annotated[int, Field(ge=16, le=65_536)] = Field(
        4410, description="samples, 100 ms or more; the windows of 25, 50 and 100 ms lie in them"
    )
    n_mels: Annotated[int, Field(ge=1, le=1024)] = Field(128, description="mel bands of each")
    n_frames: Annotated[int, Field(ge=1)] = Field(
        250, description="frames that each of the three is resized to"
    )


FeaturesConfig = Annotated[
    LogMelConfig | PerceptualMelConfig | ThreeWindowLogMelConfig, Field(discriminator="name")
]


class NormalizationConfig(Strict):
    """How a spectrogram is brought to the range that the network expects."""

    method: Literal["band", "channel", "imagenet", "none"] = Field(
        "band",
        description="statistics of the training part; band: mean 0 and deviation 1 in each band; "
        "channel: in each channel; imagenet: each channel's range taken for that of an image, less "
        "ImageNet's mean, by its deviation; none: left as it is",
    )


class CpResNetConfig(Strict):
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


class TimmConfig(Strict):
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


class InitializationConfig(Strict):
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


class AugmentConfig(Strict):
    """Random changes of the training recordings, and of each batch after the feature cache."""

    pitch_semitones: Annotated[float, Field(ge=0, le=24)] = Field(
        0.0, description="a variant's pitch, shifted by up to this much either way"
    )
    time_stretch: tuple[
        Annotated[float, Field(ge=0.25, le=4)], Annotated[float, Field(ge=0.25, le=4)]
    ] = Field((1.0, 1.0), description="range of a variant's speed; above 1 is faster")
    impulse_responses: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="impulse responses of devices, a folder or an audio file; a variant is "
        "convolved with one of them",
    )
    impulse_response_probability: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="part of the variants that are convolved with an impulse response"
    )
    impulse_responses_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="what the impulse responses must have; filled in by training"
    )
    waveform_variants: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="variants of each training recording with other pitch, speed or device, cached",
    )
    variants_per_epoch: Literal["one", "all"] = Field(
        "one", description="of a recording and its variants one at random, or each of them"
    )

    mixup_alpha: Annotated[float, Field(ge=0)] = Field(
        0.3, description="Beta(alpha, alpha) of mixup, the larger part kept; 0: off"
    )
    freq_mixstyle_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="part of the batches whose examples trade each band's mean and deviation, so "
        "other devices (Freq-MixStyle); 0: off",
    )
    freq_mixstyle_alpha: Annotated[float, Field(gt=0)] = Field(
        0.3, description="Beta(alpha, alpha) of how much of each example's own statistics is left"
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
        changes = (
            self.pitch_semitones > 0
            or self.time_stretch != (1.0, 1.0)
            or self.impulse_responses is not None
        )
        if changes != (self.waveform_variants > 0):
            raise ValueError(
                "waveform_variants goes with pitch_semitones, time_stretch or impulse_responses: "
                "give both, or neither"
            )
        return self


class TrainingConfig(Strict):
    """The optimiser, its schedule and when to stop."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] | Auto = Field(
        "auto", description="passes over the clips; auto: 32,000 clips in all, 15 to 100 epochs"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(32, description="clips of a step")
    optimizer: Literal["adam", "adamw"] = Field(
        "adamw", description="adamw: weights decay by themselves; adam: through the gradient"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="the full rate, that of the schedule's highest point"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        1e-2, description="how strongly weights are drawn to zero; 0: not at all"
    )
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
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epochs in which the rate rises from 0 to the full one, in a straight line"
    )
    constant_epochs: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epochs at the full rate before linear or cosine decay begins"
    )
    decay_end_epoch: Annotated[float, Field(gt=0)] | None = Field(
        None, description="epoch at which the decay has reached its end; none: the last"
    )
    final_rate_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="rate at the end of the decay, as a part of learning_rate"
    )
    step_epochs: Annotated[int, Field(ge=1)] = Field(
        30, description="epochs between the steps of schedule step"
    )
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="of the rate, at each of those steps"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="part of a label that is spread evenly over the classes"
    )
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


class DistillationConfig(Strict):
    """Trained models whose answers a smaller one learns from (Hinton, Vinyals, Dean 2015)."""

    teachers: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="stapes models or run folders that know all classes, their probabilities "
        "averaged; of a cross-validated run each fold's models teach that fold; empty: none",
    )
    sha256: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(
        (), description="what the teachers must have; filled in by training"
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="part of the loss that is about the teachers, not about the labels"
    )
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        2.0, description="both sides' logits are divided by it; the higher, the softer"
    )
    live: bool = Field(
        False,
        description="false: the teachers hear each recording and variant once, and mixup mixes "
        "what they said; true: they hear every mixture, in every step",
    )

    @model_validator(mode="after")
    def _a_digest_each(self) -> DistillationConfig:
        if self.sha256 and len(self.sha256) != len(self.teachers):
            raise ValueError("sha256 has one digest for each of teachers; or leave it out")
        return self


class PruningConfig(Strict):
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


class QuantizationConfig(Strict):
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
    aware_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-4, description="of that fine-tuning"
    )


class Recipe(Strict):
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
    distillation: DistillationConfig = DistillationConfig()
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


# Sections of several kinds, told apart by their field "name".
KINDS: Mapping[str, Mapping[str, type[Strict]]] = MappingProxyType(
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


def sections() -> list[tuple[str, type[BaseModel]]]:
    """The sections of a recipe with their fields; one of several kinds comes once for each."""
    found: list[tuple[str, type[BaseModel]]] = []
    for name, field in Recipe.model_fields.items():
        if name in KINDS:
            found += [(name, kind) for kind in KINDS[name].values()]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found.append((name, field.annotation))
    return found
