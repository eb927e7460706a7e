"""Whole models as ONNX files, on ONNX Runtime against torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from stapes.bundle import Bundle
from stapes.compression.quantization import half_precision, quantize
from stapes.config import load_recipe, resolve
from stapes.deploy.onnx import onnx_model
from stapes.deploy.onnx.building import IR_VERSION, OPSET, GraphBuilder
from stapes.deploy.onnx.network import add_network
from stapes.errors import ConfigError
from stapes.features import BandNormalizer, LogMel
from stapes.inference.sealing import is_intact
from stapes.models import create_model, fold_batch_norm
from stapes.runtime import load

RATE, LABELS = 8000, ("cat", "dog", "été")


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def noise(*shape: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(3)
    levels = generator.uniform(0.001, 0.3, (*shape[:-1], 1))
    return (levels * generator.standard_normal(shape)).astype(np.float32)


def make_bundle(
    network: nn.Module, channels: int, metadata: dict[str, Any] | None = None
) -> Bundle:
    """A model whose batch norms have seen something, and whose answers differ."""
    sets = [f"audio.channels={channels}", "audio.window_seconds=0.5"]
    recipe = resolve(load_recipe("small", sets), sample_rates=[RATE], durations=[0.5])
    frontend = LogMel(sample_rate=RATE, n_fft=256, hop_length=80, n_mels=24)
    normalizer = BandNormalizer(channels, 24)
    features = frontend(torch.from_numpy(noise(8, channels, RATE // 2)))
    normalizer.fit(features.numpy())
    network.train()
    with torch.no_grad():
        network(normalizer(features))
    return Bundle(frontend, normalizer, network.eval(), LABELS, recipe, metadata or {})


def cp_resnet(channels: int, **options: Any) -> nn.Module:
    return create_model(
        "cp_resnet", n_classes=3, in_channels=channels, rho=4, width=6, blocks=(1, 1, 0),
        generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip


def in_eight_bits(bundle: Bundle) -> Bundle:
    waveforms = torch.from_numpy(noise(8, bundle.recipe.audio.channels, RATE // 2))
    batch = bundle.normalizer(bundle.frontend(waveforms))
    return replace(bundle, network=quantize(bundle.network, [batch]), precision="int8")


def score() -> dict[str, Any]:
    return {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}, "confusion": [[1, 2], [3, 4]]}


@cache
def float_model() -> tuple[Bundle, bytes]:
    bundle = make_bundle(
        cp_resnet(2, damping=0.1), 2, {"data": {"licence": "CC BY 4.0"}, "score": score()}
    )
    return bundle, onnx_model(bundle)


@cache
def int8_model() -> tuple[Bundle, bytes]:
    bundle = in_eight_bits(make_bundle(cp_resnet(1), 1))
    return bundle, onnx_model(bundle)


def torchs(bundle: Bundle, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = bundle.module()(torch.from_numpy(waveform)).softmax(1).numpy()
    return found


def test_float_probabilities_are_torchs_at_any_length_and_batch() -> None:
    bundle, content = float_model()
    session = session_of(content)
    spread = []
    for batch, samples in ((1, 4000), (3, 4000), (2, 2777), (1, 20_001)):
        waveform = noise(batch, 2, samples)
        found = session.run(None, {"waveform": waveform})[0]
        np.testing.assert_allclose(found, torchs(bundle, waveform), rtol=0, atol=1e-5)
        spread.append(np.ptp(found))
    assert max(spread) > 0.2  # answers of which something can be said


def test_silence_and_a_tone_beside_silence() -> None:
    bundle, content = float_model()
    time = np.arange(4000) / RATE
    waveform = np.zeros((3, 2, 4000), np.float32)
    waveform[1] = 0.9 * np.sin(2 * np.pi * 880 * time)
    waveform[2, 0, :2000] = np.sin(2 * np.pi * 3000 * time[:2000])
    found = session_of(content).run(None, {"waveform": waveform})[0]
    np.testing.assert_allclose(found, torchs(bundle, waveform), rtol=0, atol=1e-5)


def test_int8_probabilities_are_torchs_but_for_levels_on_an_edge() -> None:
    bundle, content = int8_model()
    waveform = noise(32, 1, 4000)
    found = session_of(content).run(None, {"waveform": waveform})[0]
    expected = torchs(bundle, waveform)
    assert np.abs(found - expected).mean() < 1e-3
    assert np.ptp(expected, axis=0).max() > 0.05  # it does not answer the same to everything
    float_twin = np.abs(expected - torchs(make_bundle(cp_resnet(1), 1), waveform))
    assert np.abs(found - expected).mean() < 0.1 * float_twin.mean()  # int8 and not float


def test_int8_weights_are_stored_as_such() -> None:
    bundle, content = int8_model()
    graph = onnx.load_model_from_string(content).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state = bundle.network.state_dict()
    for name in ("stage1.block1.conv1", "head.conv"):
        np.testing.assert_array_equal(constants[f"{name}.weight"], state[f"{name}.weight"].numpy())
        multiplier = constants[f"{name}.bias_scale"].astype(np.float64)
        np.testing.assert_allclose(
            constants[f"{name}.bias"] * multiplier, state[f"{name}.bias"].numpy(), rtol=1e-6
        )
    large = {n: a.dtype for n, a in constants.items() if a.size > 30 and n.endswith("weight")}
    assert len(large) > 3
    assert set(large.values()) == {np.dtype(np.int8)}


def test_integer_operators_run(tmp_path: Path) -> None:
    # What ONNX Runtime makes of the pairs of operators: integers from the first to the last layer.
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(int8_model()[1], options, providers=["CPUExecutionProvider"])
    graph = onnx.load_model(tmp_path / "optimized.onnx").graph
    kinds = [node.op_type for node in graph.node]
    layers = sum(n.endswith(".weight") for n in int8_model()[0].network.state_dict())
    assert kinds.count("QLinearConv") == layers - 1  # the head's output is float
    assert kinds.count("QLinearAdd") == 2


def test_metadata() -> None:
    bundle, content = float_model()
    model = onnx.load_model_from_string(content)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert set(properties) == {"stapes", "stapes_digest"}
    assert is_intact(content)
    about = json.loads(properties["stapes"])
    assert about["labels"] == list(LABELS)
    assert (about["format_version"], about["precision"]) == (1, "float32")
    # The smallest spectrogram has 5 frames: 4 hops of 80 samples.
    assert about["audio"] == {
        "sample_rate": RATE, "channels": 2, "window_seconds": 0.5, "hop_seconds": None,
        "shorter": "pad", "longer": "window", "min_samples": 320,
    }  # fmt: skip
    card = about["card"]
    assert card["network"]["name"] == "cp_resnet"
    assert card["frontend"] == bundle.frontend.settings()
    assert card["data"] == {"licence": "CC BY 4.0"}
    assert card["score"] == {"accuracy": score()["accuracy"]}
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*model.graph.input, *model.graph.output)]  # fmt: skip
    assert axes == [["batch", 2, "samples"], ["batch", 3]]


def test_fewest_samples() -> None:
    bundle, content = float_model()
    session = session_of(content)
    assert np.isfinite(session.run(None, {"waveform": noise(1, 2, 320)})[0]).all()
    with pytest.raises(ValueError, match="too few"):
        torchs(bundle, noise(1, 2, 319))


@pytest.mark.parametrize("made", [float_model, int8_model])
def test_nothing_of_this_machine_is_inside(made: Callable[[], tuple[Bundle, bytes]]) -> None:
    _, content = made()
    model = onnx.load_model_from_string(content)
    for text in (
        b"site-packages",
        b"stack_trace",
        b"/torch",
        b".py",
        b"pkg.",
        str(Path.home()).encode(),
    ):
        assert text not in content
    assert not model.graph.value_info
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    names = [t.name for t in model.graph.initializer] + [
        o for n in model.graph.node for o in n.output
    ]
    assert len(names) == len(set(names))


def test_the_same_model_gives_the_same_bytes() -> None:
    bundle, content = float_model()
    assert onnx_model(bundle) == content


def test_the_features_take_little_space() -> None:
    graph = onnx.load_model_from_string(float_model()[1]).graph
    own = [t for t in graph.initializer if t.name.startswith("features/")]
    # Two weights for most of the 129 bins, with their places; tables are computed when loaded.
    assert sum(numpy_helper.to_array(tensor).nbytes for tensor in own) < 129 * 2 * 6 + 1500


@pytest.mark.parametrize("made", [float_model, int8_model])
def test_the_runtime_reads_it(made: Callable[[], tuple[Bundle, bytes]], tmp_path: Path) -> None:
    bundle, content = made()
    (tmp_path / "model.onnx").write_bytes(content)
    classifier = load(tmp_path)
    assert classifier.labels == LABELS
    waveform = noise(1, bundle.recipe.audio.channels, 4000)
    found = classifier.classify(waveform[0], RATE)
    np.testing.assert_allclose(found.probabilities, torchs(bundle, waveform)[0], atol=0.01)


def test_half_precision_takes_two_bytes_and_answers_the_same(tmp_path: Path) -> None:
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=1, rho=4, width=32, blocks=(1, 1, 0), damping=0.1,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    bundle = make_bundle(network, 1)
    bundle = replace(bundle, network=half_precision(bundle.network), precision="float16")
    content = onnx_model(bundle)
    constants = {t.name: t for t in onnx.load_model_from_string(content).graph.initializer}
    large = {
        f"{name}.weight": layer.weight
        for name, layer in bundle.network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 1000
    }
    assert len(large) > 3
    for name, weight in large.items():
        assert name not in constants
        stored = numpy_helper.to_array(constants[f"{name}_half"])
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, weight.detach().numpy())  # as in the model file
    waveform = noise(3, 1, 4000)
    found = session_of(content).run(None, {"waveform": waveform})[0]
    np.testing.assert_allclose(found, torchs(bundle, waveform), rtol=0, atol=1e-5)
    assert np.ptp(found) > 0.05
    # The numbers that ONNX Runtime computes with are those of a file in float32, to the bit.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    loaded = onnx.load_model(tmp_path / "loaded.onnx").graph
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in loaded.initializer)
    arrays = [numpy_helper.to_array(tensor) for tensor in loaded.initializer]
    folded = dict(fold_batch_norm(bundle.network).named_modules())
    for name in large:
        weight = folded[name.removesuffix(".weight")].weight.detach().numpy()
        assert any(np.array_equal(weight, array) for array in arrays), name


def test_an_ensemble() -> None:
    members = [{"name": "cp_resnet", "rho": rho, "width": 4, "blocks": (1, 0, 0)} for rho in (1, 3)]
    network = create_model("ensemble", n_classes=3, members=members, n_bins=24)
    for index, member in enumerate(network.members):
        member.normalizer.mean.fill_(index)
    bundle = make_bundle(network, 1)
    waveform = noise(2, 1, 4000)
    found = session_of(onnx_model(bundle)).run(None, {"waveform": waveform})[0]
    np.testing.assert_allclose(found, torchs(bundle, waveform), rtol=0, atol=1e-5)


# --- networks by themselves, smaller than any of ours -----------------------------------------


def run_network(network: nn.Module, shape: tuple[int, int, int]) -> tuple[Any, onnx.GraphProto]:
    """The exported network as a function of spectrograms, and its graph."""
    graph = GraphBuilder("features")
    x = graph.add("Mul", "x", graph.constant(1.0, np.float32))
    result, any_length = add_network(graph, network, x, shape)
    values = [
        onnx.helper.make_tensor_value_info(
            "x", onnx.TensorProto.FLOAT, ["b", *shape[:2], "t" if any_length else shape[2]]
        ),
        onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, ["b", "k"]),
    ]
    made = onnx.helper.make_graph(graph.nodes, "g", values[:1], values[1:], graph.initializers)
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    session = session_of(model.SerializeToString())
    return lambda x: session.run(None, {"x": x.numpy()})[0], made


class Small(nn.Module):
    """One convolution, a ReLU, another convolution, a mean."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.relu, self.last = first, nn.ReLU(), last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.relu(self.first(x)))
        return y.mean((2, 3))


def conv(*sizes: int, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*sizes, **options)


def same_conv(*sizes: int, **options: Any) -> nn.Module:
    from stapes.models.torchvision_operators import declare_missing_operators

    declare_missing_operators()
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    made: nn.Module = Conv2dSame(*sizes, **options)
    return made


@pytest.mark.parametrize("eight_bits", [False, True])
def test_convolutions_that_pad_as_their_input_needs(eight_bits: bool) -> None:
    # Without biases: the exporter leaves equal constants out, and eight bits need theirs.
    first, last = same_conv(1, 4, 3, stride=2, bias=False), conv(4, 3, 1, bias=False)
    network = Small(first, last).eval()
    spectrograms = torch.randn(2, 1, 15, 20)
    if eight_bits:
        network = quantize(network, [spectrograms])
    run, graph = run_network(network, (1, 15, 20))
    assert not any(node.op_type == "Pad" for node in graph.node)
    for frames in (20, 21):  # one zero in front or none
        x = torch.randn(2, 1, 15, frames)
        expected = network(x).softmax(1).detach().numpy()
        np.testing.assert_allclose(run(x), expected, rtol=0, atol=1e-2 if eight_bits else 1e-6)


@pytest.mark.parametrize(("kernel", "padding", "channels"), [((5, 3), (1, 2), 8), (4, 1, 2)])
def test_int8_stems_over_even_and_odd_places(kernel: Any, padding: Any, channels: int) -> None:
    network = Small(conv(2, 4, kernel, stride=2, padding=padding), conv(4, 3, 1)).eval()
    network = quantize(network, [torch.randn(2, 2, 15, 20)])
    run, graph = run_network(network, (2, 15, 20))
    first = next(node for node in graph.node if node.op_type == "Conv")
    weight = next(t for t in graph.initializer if t.name == "first.weight")
    assert weight.dims[1] == channels  # an even kernel stays as it is
    assert first.input[1] == "first.weight_float"
    for frames in (20, 21, 9):
        x = torch.randn(3, 2, 15, frames)
        expected = network(x).softmax(1).numpy()
        # The same integers, so the same levels: no edge is near these.
        np.testing.assert_allclose(run(x), expected, rtol=0, atol=1e-5)


def test_int8_linear_layers_on_rows() -> None:
    class Rows(nn.Module):
        in_channels = 1
        min_input_size = 6

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.relu, self.last = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.relu(self.first(x.squeeze(1).transpose(1, 2))))
            return y.mean(1)

    network = quantize(Rows().eval(), [torch.randn(4, 1, 6, 10)])
    run, graph = run_network(network, (1, 6, 10))
    x = torch.randn(3, 1, 6, 13)
    np.testing.assert_allclose(run(x), network(x).softmax(1).numpy(), rtol=0, atol=1e-2)
    stored = {t.name: t.data_type for t in graph.initializer}
    assert stored["first.weight"] == stored["last.weight"] == onnx.TensorProto.INT8


def test_a_network_of_one_length() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 64 * 64, 3)).eval()
    run, graph = run_network(network, (1, 64, 64))
    assert graph.input[0].type.tensor_type.shape.dim[3].dim_value == 64
    x = torch.randn(3, 1, 64, 64)
    expected = network(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(run(x), expected, rtol=0, atol=1e-6)


def test_a_network_that_cannot_be_exported_is_refused() -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = conv(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(self.layer(x).mean((2, 3)))

    with pytest.raises(ConfigError, match=r"^torch cannot export this network to ONNX \(.+\); "):
        run_network(Unusual().eval(), (1, 6, 10))
