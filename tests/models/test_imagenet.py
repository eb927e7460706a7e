"""Image networks, judged by timm's own and by what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stapes.errors import ConfigError, StapesError, UnknownNameError
from stapes.models import create_model
from stapes.models.torchvision_operators import declare_missing_operators
from stapes.models.weights import load_image_weights, read_weights

declare_missing_operators()
timm: Any = pytest.importorskip("timm")


def network(architecture: str, n_classes: int = 5, in_channels: int = 1, **options: Any) -> Any:
    return create_model(
        "timm", n_classes=n_classes, in_channels=in_channels, architecture=architecture,
        generator=torch.Generator().manual_seed(0), **options,
    ).eval()  # fmt: skip


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# --- the same as timm's -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [  # with 1000 classes, as the papers and their code give them
        ("tf_efficientnet_lite0", 4_652_008),
        ("resnet50_v1", 25_557_032),
        ("densenet201", 20_013_928),
        ("inception_v3", 23_834_568),  # without the auxiliary classifier
    ],
)
def test_parameters_are_those_of_the_papers(architecture: str, parameters: int) -> None:
    built = network(architecture, n_classes=1000, in_channels=3)
    assert sum(p.numel() for p in built.parameters()) == parameters


def _as_timm(architecture: str, weights: dict[str, Tensor]) -> nn.Module:
    """timm's own, the strides of a first ResNet moved by hand."""
    plain = timm.create_model(architecture.removesuffix("_v1"), num_classes=1000)
    missing, _ = plain.load_state_dict(weights, strict=False)
    assert set(missing) <= {"classifier.weight", "classifier.bias", "fc.weight", "fc.bias"}
    if architecture.endswith("_v1"):
        for stage in (plain.layer2, plain.layer3, plain.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return plain.eval()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("architecture", "with_head"),
    [
        ("tf_efficientnet_lite0", True),
        ("resnet50_v1", True),
        ("densenet121", False),
        ("inception_v3", False),
    ],
)
def test_pretrained_networks_compute_what_timms_do(
    shared: Path, architecture: str, with_head: bool
) -> None:
    path = shared / "weights" / f"{architecture.removesuffix('_v1')}.safetensors"
    weights = read_weights(path)
    own = network(architecture, n_classes=1000, in_channels=3)
    heads = [f"{name.removeprefix('body.')}.weight" for name in own.classifier()]
    assert all((name in weights) == with_head for name in heads)
    load_image_weights(own, weights, source="test", with_head=with_head)
    other = _as_timm(architecture, weights)
    x = noise(1, 3, 96, 128)
    with torch.no_grad():
        assert torch.equal(own.forward_features(x), other.forward_features(x))
        if with_head:
            assert torch.equal(own(x), other(x))


def test_the_same_weights_give_the_same_logits() -> None:
    own = network("resnet10t", n_classes=7, in_channels=3, dropout=0.2)
    other = timm.create_model("resnet10t", num_classes=7).eval()
    other.load_state_dict({k.removeprefix("body."): v for k, v in own.state_dict().items()})
    x = noise(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(own(x), other(x))
        pooled = own.forward_head(own.forward_features(x), pre_logits=True)
        assert torch.equal(own.body.fc(pooled), other(x))


def test_the_stride_of_the_first_resnets_is_in_the_first_convolution() -> None:
    body = network("resnet50_v1").body
    for stage in (body.layer2, body.layer3, body.layer4):
        assert stage[0].conv1.stride == (2, 2)
        assert stage[0].conv2.stride == (1, 1)
    later = network("resnet50").body
    assert later.layer2[0].conv1.stride == (1, 1)
    # Only where the stride is differs.
    assert {k: v.shape for k, v in body.state_dict().items()} == {
        k: v.shape for k, v in later.state_dict().items()
    }


# --- channels ---------------------------------------------------------------------------------


def test_one_spectrogram_becomes_all_three_colours() -> None:
    one, three = network("resnet10t"), network("resnet10t", in_channels=3)
    three.load_state_dict(one.state_dict())
    x = noise(2, 1, 64, 70)
    with torch.no_grad():
        assert torch.equal(one(x), three(x.repeat(1, 3, 1, 1)))
    assert network("resnet10t", copy_mono=False).state_dict()["body.conv1.0.weight"].shape[1] == 1
    assert network("resnet10t", in_channels=2).state_dict()["body.conv1.0.weight"].shape[1] == 2


# --- cut off after a block --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "blocks"),
    [
        ("tf_efficientnet_lite0", (1, 2, 4)),
        ("resnet10t", (1, 3)),
        ("densenet121", (2,)),
        ("inception_v3", (2,)),
        ("test_vit", (2,)),
    ],
)
def test_what_is_cut_gives_what_the_whole_has_there(
    architecture: str, blocks: tuple[int, ...]
) -> None:
    whole = network(architecture)
    x = noise(2, 1, 96, 100)
    seen: dict[str, Tensor] = {}
    for name in whole.blocks():
        whole.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: seen.__setitem__(name, output.detach().clone())
        )
    with torch.no_grad():
        whole(x)
        for count in blocks:
            part = network(architecture, blocks=count)
            assert part.blocks() == whole.blocks()[:count]
            kept = part.state_dict().keys() - {
                f"{head}.{kind}" for head in part.classifier() for kind in ("weight", "bias")
            }
            assert kept < whole.state_dict().keys()
            part.load_state_dict({k: whole.state_dict()[k] for k in kept}, strict=False)
            end = seen[whole.blocks()[count - 1]]
            features = part.forward_features(x)
            if architecture == "test_vit":  # its last norm goes with what is cut off
                end = end.transpose(1, 2).unsqueeze(2)
            assert torch.equal(features, end)
            assert features.shape[1] == part.n_features
            assert part(x).shape == (2, 5)


def test_all_blocks_are_the_whole_network() -> None:
    whole, cut = network("resnet10t"), network("resnet10t", blocks=5)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in cut.state_dict().items())
    assert cut.settings()["blocks"] == 5


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"architecture": "resnt50"}, UnknownNameError, r"'resnt50'. Did you mean 'resnet50'\?"),
        ({"architecture": "zzz"}, UnknownNameError, "Known: convnext_atto, densenet201, inception"),
        ({"architecture": "hf-hub:timm/resnet50"}, ConfigError, "'resnet50', without a repository"),
        ({"architecture": "timm/resnet50"}, ConfigError, "without a repository"),
        ({"architecture": "local-dir:/tmp"}, ConfigError, "without a repository"),
        ({"architecture": "resnet50.none"}, ConfigError, r"Invalid pretrained tag \(none\)"),
        ({"architecture": "resnet50_v1.a1_in1k"}, UnknownNameError, "resnet50_v1.a1_in1k"),
        ({"architecture": "resnet18_v1"}, ConfigError, "only ResNets of bottlenecks"),
        ({"architecture": "levit_128s"}, ConfigError, "one size only"),
        ({"architecture": "test_nfnet", "damping": 0.1}, ConfigError, "undoes model.damping"),
        ({"architecture": "resnet10t", "blocks": 9}, ConfigError, r"model.blocks = 9: .* 5 blocks"),
        ({"architecture": "test_convnext", "blocks": 2}, ConfigError, "cannot be cut off after"),
    ],
)
def test_what_cannot_be_is_refused_in_one_short_sentence(
    options: dict[str, Any], error: type[StapesError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        network(**options)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_sizes_that_do_not_go_through_are_explained() -> None:
    built = network("dla46_c")  # adds maps that were halved and doubled again
    assert built(noise(1, 1, 64, 96)).shape == (1, 5)
    with pytest.raises(ConfigError, match=r"80 frequency bins and 90 frames .* multiples of 32"):
        built(noise(1, 1, 80, 90))


def test_an_error_of_another_kind_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    built = network("resnet10t")

    def no_memory(_x: Tensor) -> Tensor:
        if _x.is_meta:
            return _x.new_empty(2, built.n_features, 1, 1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(built.body, "forward_features", no_memory)
    monkeypatch.setattr(built.body, "forward", no_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        built(noise(1, 1, 64, 64))
