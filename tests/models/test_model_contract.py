"""What every registered network must do; registering one buys it these tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from stapes.errors import UnknownNameError
from stapes.models import (
    Network,
    count_complexity,
    create_model,
    layer_receptive_fields,
    model_names,
    model_options,
    receptive_field,
    register_model,
)

# Variants that are tested of each network, by name: options that make it small and change what it
# is made of. A network without an entry is tested as it comes.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "cp_resnet": {
        "damped": {"width": 4, "damping": 0.1},
        "decomposed": {"width": 8, "decomposition": 4},
        "damped and decomposed": {"width": 8, "damping": 0.1, "decomposition": 2},
        "channels": {"width": 4, "channels": ((3, 4, 2, 5, 3), (7, 2, 8, 5), (9,))},
        "channels, damped and decomposed": {
            "width": 8,
            "damping": 0.1,
            "decomposition": 2,
            "channels": ((6, 7, 5, 8, 4), (9, 16, 4, 6), (1,)),
        },
        "all stages": {"width": 2, "blocks": (4, 4, 4), "damping": 0.1, "rho": 21},
    },
    "timm": {
        "cut": {"architecture": "tf_efficientnet_lite0", "blocks": 2, "dropout": 0.3},
        "cut and damped": {"architecture": "resnet10t", "blocks": 3, "damping": 0.1},
        "concatenating": {"architecture": "densenet121", "blocks": 2, "copy_mono": False},
        "gated": {"architecture": "mobilenetv3_small_050"},
        "standardised weights": {"architecture": "test_nfnet"},
        "channels last": {"architecture": "test_convnext"},
        "tokens": {"architecture": "test_vit"},
    },
    "ensemble": {
        "of two networks": {
            "n_bins": 64,
            "members": (
                {"name": "cp_resnet", "width": 4, "rho": 2, "blocks": (2, 0, 0)},
                {"name": "cp_resnet", "width": 8, "damping": 0.1, "decomposition": 2},
            ),
        },
    },
}
# Of those, the ones that are more than convolutions, pooling and branches.
WITHOUT_FIELD = {"timm channels last", "timm tokens"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name} {variant}".strip(): (name, options)
    for name in model_names()
    for variant, options in VARIANTS.get(name, {"": {}}).items()
}

every_model = pytest.mark.parametrize("case", CASES)


def build(case: str, *, n_classes: int = 3, in_channels: int = 2, seed: int = 0) -> Any:
    name, options = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    return create_model(
        name, n_classes=n_classes, in_channels=in_channels, generator=generator, **options
    )


def spectrograms(batch: int = 4, channels: int = 2, frames: int = 70) -> torch.Tensor:
    return torch.randn(batch, channels, 64, frames, generator=torch.Generator().manual_seed(1))


@every_model
def test_forward_is_head_of_features_with_the_stated_shapes(case: str) -> None:
    model = build(case).eval()
    assert isinstance(model, Network)
    x = spectrograms()
    with torch.no_grad():
        features = model.forward_features(x)
        logits = model(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features), logits)
    assert logits.shape == (4, model.n_classes) == (4, 3)
    assert features.shape[:2] == (4, model.n_features)
    assert pooled.shape == (4, _reads(model))
    assert logits.isfinite().all()
    assert logits.std(dim=0).min() > 0  # it looks at its input


def _reads(model: Any) -> int:
    """Values that the last layer reads: more than the map has where the head has two layers."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    two = model.settings().get("architecture") == "mobilenetv3_small_050"
    return last[-1].in_features if two else model.n_features


@every_model
def test_every_parameter_gets_a_gradient(case: str) -> None:
    model = build(case).train()
    for parameter in model.parameters():
        if not parameter.any():  # a branch that starts at zero
            nn.init.constant_(parameter, 0.1)
    nn.functional.cross_entropy(model(spectrograms()), torch.tensor([0, 1, 2, 0])).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().max() > 0, label


@every_model
@pytest.mark.parametrize("mode", [True, False])
def test_a_batch_of_one_and_a_single_class_keep_their_axes(case: str, mode: bool) -> None:
    model = build(case, n_classes=1, in_channels=1).train(mode)
    assert model(spectrograms(batch=1, channels=1)).shape == (1, 1)


@every_model
def test_the_smallest_input_works_and_a_smaller_one_is_explained(case: str) -> None:
    model = build(case).eval()
    least = model.min_input_size
    assert model(torch.zeros(1, 2, least, least)).shape == (1, 3)
    for size in ((least - 1, least), (least, least - 1)):
        with pytest.raises(ValueError, match=f"{size[0]} frequency bins and {size[1]} frames"):
            model(torch.zeros(1, 2, *size))
    with pytest.raises(ValueError, match=r"must be \(batch, 2, frequency, time\), not \(1, 3,"):
        model(torch.zeros(1, 3, least, least))


@every_model
def test_a_new_classifier_keeps_the_features(case: str) -> None:
    model = build(case).eval()
    x = spectrograms()
    before = model.forward_features(x)
    model.reset_classifier(7, generator=torch.Generator().manual_seed(5))
    assert model.n_classes == 7
    assert model.settings()["n_classes"] == 7
    assert model(x).shape == (4, 7)
    assert torch.equal(model.forward_features(x), before)
    assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="n_classes = 0"):
        model.reset_classifier(0)


@every_model
def test_settings_and_state_dict_rebuild_the_network(case: str) -> None:
    model = build(case)
    model(spectrograms())  # batch-norm statistics that are not the initial ones
    model.eval()
    again = create_model(**json.loads(json.dumps(model.settings()))).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(spectrograms()), model(spectrograms()))
    assert again.settings() == model.settings()


@every_model
def test_the_seed_decides_the_weights_however_many_were_built_before(case: str) -> None:
    first, second, other = build(case, seed=3), build(case, seed=3), build(case, seed=4)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@every_model
def test_without_a_generator_the_callers_seed_decides(case: str) -> None:
    name, options = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = create_model(name, n_classes=2, **options)
        torch.manual_seed(3)
        model = create_model(name, n_classes=2, **options)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)


@every_model
def test_building_and_evaluating_leave_the_random_state_alone(case: str) -> None:
    state = torch.get_rng_state()
    model = build(case).eval()
    with torch.no_grad():
        first = model(spectrograms())
        assert torch.equal(model(spectrograms()), first)
    model.reset_classifier(2, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


@every_model
def test_what_it_costs_and_sees_can_be_told(case: str) -> None:
    model = build(case)
    cost = count_complexity(model, spectrograms().shape)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.macs > cost.parameters
    assert cost.bytes_int8 < cost.bytes_float16 < cost.bytes_float32
    assert cost.peak_activation_bytes >= 4 * spectrograms().numel()
    fields = layer_receptive_fields(model)
    if case in WITHOUT_FIELD:
        with pytest.raises(ValueError, match="no receptive field"):
            receptive_field(model)
        return
    for layer in cost.layers:  # behind a pooling of the whole map no layer has a field
        assert layer.name in fields or layer.output_shape[2:] in ((), (1, 1)), layer.name
    assert receptive_field(model).time.size == max(f.time.size for f in fields.values())


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"network 'cp_resnt'. Did you mean 'cp_resnet'"):
        create_model("cp_resnt", n_classes=2)
    with pytest.raises(UnknownNameError, match=r"'rhoo'. Did you mean 'rho'\? Known: blocks, ch"):
        create_model("cp_resnet", n_classes=2, rhoo=3)
    with pytest.raises(UnknownNameError, match="Known: "):
        model_options("resnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 0}, "n_classes = 0"),
        ({"in_channels": 0}, "in_channels = 0"),
        ({"n_classes": True}, "n_classes = True"),
        ({"rho": 22}, "rho = 22: must be a whole number from 0 to 21"),
        ({"rho": 2.5}, "rho = 2.5"),
        ({"width": 0}, "width = 0"),
        ({"blocks": (4, 3)}, r"blocks = \(4, 3\): must be three"),
        ({"blocks": (0, 3, 0)}, "1 to 4, 0 to 4 and 0 to 4"),
        ({"blocks": (4, 5, 0)}, "blocks = "),
        ({"blocks": 4}, "blocks = 4"),
        ({"damping": 1.5}, "damping = 1.5: must be a number from 0 to 1"),
        ({"decomposition": 0}, "decomposition = 0: must be a whole number from 1 to 64"),
        ({"decomposition": True}, "decomposition = True"),
        ({"decomposition": 2.5}, "decomposition = 2.5"),
        ({"channels": ((4, 4), (8,), (16,))}, "channels = .*: must be, for each of the three"),
        ({"channels": ((4, 4, 4, 4, 0), (8, 8, 8, 8), (16,))}, "all 1 or more"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("cp_resnet", **({"n_classes": 2, "width": 4} | options))


def test_a_registered_network_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from stapes.models import registry

    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    def tiny(*, n_classes: int, in_channels: int, generator: object, depth: int = 1) -> nn.Module:
        return nn.Conv2d(in_channels, n_classes, depth)

    register_model("tiny", tiny)
    assert model_options("tiny") == {"depth": 1}
    assert create_model("tiny", n_classes=5, in_channels=2, depth=3).weight.shape == (5, 2, 3, 3)
    with pytest.raises(ValueError, match="'tiny' is registered already"):
        register_model("tiny", tiny)
