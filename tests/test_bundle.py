from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged_files
from safetensors.numpy import load as load_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from stapes import bundle as bundle_module
from stapes.bundle import Bundle, file_size, load_bundle, save_bundle
from stapes.config import load_recipe, resolve
from stapes.errors import ModelFileError
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model, fold_damping
from stapes.models.quantized import int8_structure, is_quantized

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "damped": {"damping": 0.1},
    "decomposed": {"decomposition": 2},
    "decomposed and damped": {"decomposition": 3, "damping": 0.2},
    "channels pruned": {"channels": [[3, 1, 4], [7, 2], [1]], "damping": 0.1},
}
FORMS: dict[str, dict[str, Any]] = {
    "named": {},
    "packed": {"compact": True},
    "float16": {"precision": "float16"},
}


def make_bundle(damping: float | None = 0.1, **options: Any) -> Bundle:
    recipe = load_recipe("small", ["model.width=4", "audio.window_seconds=0.5"])
    recipe = resolve(recipe, sample_rates=[8000], durations=[0.5])
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, frontend.n_bins)
    normalizer.mean.normal_()
    normalizer.std.uniform_(1, 2)
    options = {"rho": 4, "width": 4, "blocks": (2, 1, 0), "damping": damping, **options}
    network = create_model("cp_resnet", n_classes=3, in_channels=1, **options)
    for _ in range(2):  # batch norms learn something
        network(torch.randn(2, 1, frontend.n_bins, 40) * 2 + 1)
    return Bundle(
        frontend, normalizer, network.eval(), ("a", "b", "ç"), recipe, {"seed": 3, "score": None}
    )


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    """What has two axes or more: the weights of convolutions, below their parametrizations."""
    return [p.data for p in network.parameters() if p.ndim > 1]


def in_form(bundle: Bundle, form: str) -> Bundle:
    if form == "float16":
        for weight in weights_of(bundle.network):
            weight.copy_(weight.half())
    return replace(bundle, **FORMS[form])


def prune(network: nn.Module, keep: int) -> None:
    """Leave ``keep`` parameters that are not zero; batch norms and biases stay."""
    weights = weights_of(network)
    others = sum(p.numel() for p in network.parameters() if p.ndim < 2)
    every = torch.cat([w.abs().flatten() for w in weights])
    smallest = every.topk(keep - others).values[-1]
    for weight in weights:
        weight[weight.abs() < smallest] *= 0  # leaves negative zeros, as masks do


def in_eight_bits(bundle: Bundle, zeros: float = 0.1) -> Bundle:
    """Of the same structure, with any numbers at all."""
    network = int8_structure(bundle.network)
    for name, tensor in network.state_dict().items():
        if tensor.dtype == torch.int8:
            tensor.random_(-127, 128).mul_(torch.rand(tensor.shape) >= zeros)
        elif tensor.dtype == torch.uint8:
            tensor.random_(256)
        else:
            assert name.rpartition(".")[2] in ("scale", "bias"), "nothing else is expected"
            tensor.uniform_(0.01, 0.1)
    return replace(bundle, network=network, precision="int8")


def saved_in_all_forms(folder: Path) -> Iterator[Path]:
    for form in (*FORMS, "int8"):
        for keep in (None, 300):
            bundle = make_bundle()
            if keep:
                prune(bundle.network, keep)
            path = folder / f"{form}-{keep}" / "model.safetensors"
            save_bundle(in_eight_bits(bundle) if form == "int8" else in_form(bundle, form), path)
            yield path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Bundle, Path]:
    bundle, path = make_bundle(), tmp_path / "model.safetensors"
    save_bundle(bundle, path)
    return bundle, path


@pytest.mark.parametrize("damping", [None, 0.1])
def test_a_loaded_model_answers_the_same_to_the_bit(tmp_path: Path, damping: float | None) -> None:
    bundle = make_bundle(damping)
    save_bundle(bundle, tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    loaded = load_bundle(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before), "loading must not move the random state"
    waveform = torch.randn(2, 1, 4000)
    with torch.inference_mode():
        assert torch.equal(bundle.module()(waveform), loaded.module()(waveform))
    assert loaded.labels == bundle.labels
    assert loaded.recipe == bundle.recipe
    assert loaded.metadata == bundle.metadata
    assert loaded.frontend.settings() == bundle.frontend.settings()


def test_the_same_model_gives_the_same_bytes(saved: tuple[Bundle, Path], tmp_path: Path) -> None:
    bundle, path = saved
    save_bundle(bundle, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("folded", [False, True], ids=["raw", "folded"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_network_survives_every_form(
    tmp_path: Path, kind: str, folded: bool, form: str
) -> None:
    bundle = make_bundle(**OPTIONS[kind] or {"damping": None})
    if folded:
        fold_damping(bundle.network)
    prune(bundle.network, sum(p.numel() for p in bundle.network.parameters()) // 2)
    bundle = in_form(bundle, form)
    save_bundle(bundle, tmp_path / "m.safetensors")
    loaded = load_bundle(tmp_path / "m.safetensors")

    state, back = bundle.network.state_dict(), loaded.network.state_dict()
    assert list(back) == list(state)
    for name, tensor in state.items():
        if form == "named" or not name.endswith("num_batches_tracked"):
            assert torch.equal(back[name], tensor), name
            assert back[name].dtype == tensor.dtype
    assert loaded.network.settings() == bundle.network.settings()  # type: ignore[operator]
    waveform = torch.randn(2, 1, 4000)
    with torch.inference_mode():
        assert torch.equal(bundle.module()(waveform), loaded.module()(waveform))
    for same in ("labels", "recipe", "metadata", "precision"):
        assert getattr(loaded, same) == getattr(bundle, same), same
    assert loaded.frontend.settings() == bundle.frontend.settings()

    size = (tmp_path / "m.safetensors").stat().st_size
    assert file_size(bundle) == size
    if form != "named":  # its step counters are there again
        save_bundle(loaded, tmp_path / "again.safetensors")
        assert file_size(loaded) == size
        again = (tmp_path / "again.safetensors").read_bytes()
        assert again == (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_network_in_eight_bits_survives(tmp_path: Path, kind: str, zeros: float) -> None:
    bundle = in_eight_bits(make_bundle(**OPTIONS[kind] or {"damping": None}), zeros)
    save_bundle(bundle, tmp_path / "m.safetensors")
    loaded = load_bundle(tmp_path / "m.safetensors")
    assert loaded.precision == "int8"
    assert is_quantized(loaded.network)
    state, back = bundle.network.state_dict(), loaded.network.state_dict()
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype
    waveform = torch.randn(2, 1, 4000)
    with torch.inference_mode():
        assert torch.equal(bundle.module()(waveform), loaded.module()(waveform))
    size = (tmp_path / "m.safetensors").stat().st_size
    assert file_size(loaded) == file_size(bundle) == size
    save_bundle(loaded, tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "m.safetensors").read_bytes()


def test_eight_bits_take_less_than_a_third_of_the_training_model() -> None:
    bundle = make_bundle(width=32, blocks=(4, 3, 0), rho=7)
    assert file_size(in_eight_bits(bundle)) < 0.3 * file_size(bundle)


def test_a_file_of_the_first_format_still_answers_the_same() -> None:
    loaded = load_bundle(Path(__file__).parent / "golden" / "model_format1.safetensors")
    assert loaded.labels == ("a", "ç")
    assert loaded.precision == "float32"
    assert not loaded.compact
    time = torch.arange(4000) / 8000
    waveform = torch.sin(2 * torch.pi * 1000 * time**2).reshape(1, 1, -1)
    with torch.inference_mode():
        logits = loaded.module()(waveform)[0]
    torch.testing.assert_close(logits, torch.tensor(loaded.metadata["logits"]), rtol=1e-4, atol=0)


def test_250k_weights_in_half_precision_take_500_kb_and_their_positions(tmp_path: Path) -> None:
    network = create_model(
        "cp_resnet", n_classes=3, in_channels=2, rho=3, width=128, blocks=(4, 3, 0), damping=0.1
    )
    network(torch.randn(2, 2, 64, 64))  # batch norms hold no zeros any more
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.bias.data.uniform_(0.1, 1)
    fold_damping(network)
    prune(network, 250_000)
    assert sum(int(p.count_nonzero()) for p in network.parameters()) == 250_000
    bundle = make_bundle()
    normalizer = BandNormalizer(2, bundle.frontend.n_bins)
    bundle = replace(bundle, network=network.eval(), normalizer=normalizer)
    bundle = in_form(bundle, "float16")
    save_bundle(bundle, tmp_path / "m.safetensors")

    size = (tmp_path / "m.safetensors").stat().st_size
    positions = sum(math.ceil(p.numel() / 8) for p in network.parameters())
    assert size <= 1.1 * 500_000 + positions
    # Batch norm has four numbers a channel of four bytes each, of which two are parameters and have
    # two bytes in the 500 KB.
    channels = sum(norm.num_features for norm in norms)
    assert 500_000 + positions + 12 * channels < size < 504_000 + positions + 12 * channels
    assert size == file_size(bundle)
    back = load_bundle(tmp_path / "m.safetensors").network
    for one, other in zip(network.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)


def test_anyone_can_read_a_sparse_training_model(tmp_path: Path) -> None:
    bundle = make_bundle(damping=None)
    prune(bundle.network, 300)
    save_bundle(bundle, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    arrays = load_arrays(content)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["stapes"])
    assert len(header["sparse"]) > 3
    for name, tensor in bundle.network.state_dict().items():
        full = arrays.get(f"network.{name}")
        if full is None:
            shape = header["sparse"][f"network.{name}"]
            values = iter(arrays[f"network.{name}.values"].tolist())
            bits = "".join(f"{byte:08b}" for byte in arrays[f"network.{name}.positions"].tolist())
            flat = [next(values) if bit == "1" else 0.0 for bit in bits[: math.prod(shape)]]
            assert not list(values)
            full = np.array(flat, np.float32).reshape(shape)
        np.testing.assert_array_equal(full, tensor.numpy())
    assert header["precision"] == "float32"


def test_a_dense_training_model_has_plain_tensors_under_their_names(
    saved: tuple[Bundle, Path],
) -> None:
    bundle, path = saved
    state = load_tensors(path.read_bytes())
    expected = {f"network.{name}": t for name, t in bundle.network.state_dict().items()}
    assert set(expected) <= set(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_packed_file_holds_little_besides_its_numbers() -> None:
    bundle = replace(make_bundle(damping=None, width=8), compact=True)
    state = bundle.network.state_dict()
    numbers = sum(t.nbytes for n, t in state.items() if not n.endswith("num_batches_tracked"))
    numbers += sum(t.nbytes for t in bundle.normalizer.state_dict().values())
    assert numbers < file_size(bundle) < numbers + 2000
    named = file_size(replace(bundle, compact=False))
    assert named > numbers + 8000, "or this test says nothing"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"precision": "float16"}, r"network\.\S+ holds values that float16 has not"),
        ({"precision": "int8"}, "precision = 'int8': the network computes in float32"),
        ({"precision": "float32", "network": None}, "'float32': the network computes in int8"),
        ({"precision": "int4"}, "one of float32, float16, int8"),
        ({"labels": ("a", "b")}, "2 labels for 3 classes"),
    ],
)
def test_what_could_not_be_given_back_is_not_written(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    bundle = make_bundle()
    if "network" in change:
        change = {**change, "network": in_eight_bits(bundle).network}
    bundle = replace(bundle, **change)
    for attempt in (lambda: save_bundle(bundle, tmp_path / "m"), lambda: file_size(bundle)):
        with pytest.raises(ValueError, match=sentence):
            attempt()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compact", [False, True])
def test_a_network_that_its_settings_do_not_rebuild_is_not_written(compact: bool) -> None:
    bundle = replace(make_bundle(), compact=compact)
    torch_prune.l1_unstructured(bundle.network.head.conv, "weight", 0.5)  # type: ignore
    with pytest.raises(ValueError, match=r"do not rebuild it \(network\.head\.conv\.weight and 2"):
        file_size(bundle)


def test_a_weight_too_large_for_half_precision_is_not_written() -> None:
    bundle = in_form(make_bundle(), "float16")
    weights_of(bundle.network)[0].flatten()[0] = 1e5
    with pytest.raises(ValueError, match="float16 has not"):
        file_size(bundle)


def test_truncation_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    for path in saved_in_all_forms(tmp_path):
        content = path.read_bytes()
        for size in [0, 1, 7, 8, 100, 400, len(content) // 2, len(content) - 1]:
            path.write_bytes(content[:size])
            with pytest.raises(ModelFileError, match=r"model\.safetensors"):
                load_bundle(path)


def test_a_changed_byte_anywhere_is_a_clear_error(tmp_path: Path) -> None:
    for path in saved_in_all_forms(tmp_path):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 150)):
            changed = bytearray(content)
            changed[place] ^= 0x11
            path.write_bytes(changed)
            with pytest.raises(ModelFileError, match=r"model\.safetensors"):
                load_bundle(path)


def test_every_damage_is_a_clear_error_or_none_at_all(tmp_path: Path) -> None:
    good = list(saved_in_all_forms(tmp_path))
    refused = 0
    for path in damaged_files(tmp_path / "bad", good, n=56, seed=5):
        intact = path.read_bytes() in [g.read_bytes() for g in good]
        if intact:
            load_bundle(path)
        else:
            with pytest.raises(ModelFileError, match=re.escape(str(path))):
                load_bundle(path)
            refused += 1
    assert refused == 48, "all but those whose name alone changed"


def read_parts(content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header (the compressed one of a packed file) and tensors."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["stapes"])
    tensors = load_tensors(content)
    if header["layout"] == "packed":
        header = json.loads(zlib.decompress(tensors["header"].numpy().tobytes()))
    return header, tensors


def forged(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """A file with a digest that is right, by someone who knows how."""
    if "header" in tensors:
        blob = zlib.compress(json.dumps(header).encode(), 9)
        tensors = {**tensors, "header": torch.frombuffer(bytearray(blob), dtype=torch.uint8)}
        header = {"format_version": 2, "layout": "packed"}
    header = {**header, "digest": bundle_module._digest(header, tensors)}
    return save_tensors(tensors, metadata={"stapes": json.dumps(header)})


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def changed_at(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed_at(copy[path[0]] if path[1:] else None, path[1:], value)
    return copy


NONSENSE = [None, -1, 0, 7, 2**31, 10**30, 1.5, True, "x", "int8", [], [1, 2, 3], {}, {"name": 1}]


@pytest.mark.parametrize("form", [*FORMS, "int8"])
def test_a_forged_header_is_a_clear_error_or_a_model(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.safetensors"
    bundle = make_bundle(decomposition=2)
    prune(bundle.network, 300)
    save_bundle(in_eight_bits(bundle) if form == "int8" else in_form(bundle, form), path)
    header, tensors = read_parts(path.read_bytes())
    path.write_bytes(forged(header, tensors))
    assert load_bundle(path).labels == bundle.labels, "an unchanged forgery is good"

    # The recipe has a test of its own: two of its fields stand for all.
    where = [p for p in places(header) if p and (p[0] != "recipe" or len(p) < 2)]
    rng = np.random.default_rng(1)
    errors, read = [], 0
    for number, place in enumerate(where * 2):
        value = NONSENSE[(number + int(rng.integers(3))) % len(NONSENSE)]
        path.write_bytes(forged(changed_at(header, place, value), tensors))
        try:
            load_bundle(path)
            read += 1
        except ModelFileError as error:
            errors.append(str(error))
    assert len(errors) > read > 0
    assert all("model.safetensors: " in error for error in errors)


@pytest.mark.skipif(sys.platform != "linux", reason="counts peak memory in Linux's unit")
@pytest.mark.parametrize("form", ["named", "packed", "int8"])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("network", "width"), 2048),
        (("network", "width"), 2**40),
        (("network", "channels"), [[2**14] * 3, [2**14] * 2, [1]]),
        (("normalizer", "mean"), [2**16, 2**16, 1]),
        (("frontend", "n_mels"), 2**20),
        (("frontend", "n_fft"), 2**28),
    ],
)
def test_a_forged_size_costs_no_memory(
    tmp_path: Path, form: str, place: tuple[str, str], value: Any
) -> None:
    import resource

    path = tmp_path / "model.safetensors"
    bundle = make_bundle()
    save_bundle(in_eight_bits(bundle) if form == "int8" else in_form(bundle, form), path)
    header, tensors = read_parts(path.read_bytes())
    path.write_bytes(forged(changed_at(header, place, value), tensors))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match=r"too large|cannot rebuild"):
        load_bundle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KB


def test_a_header_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_bundle(replace(make_bundle(), compact=True), path)
    header, tensors = read_parts(path.read_bytes())
    header["metadata"]["bomb"] = " " * 50_000_000
    path.write_bytes(forged(header, tensors))
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelFileError, match="does not end where it should"):
        load_bundle(path)


def test_packed_numbers_too_few_or_too_many_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_bundle(replace(make_bundle(), compact=True), path)
    header, tensors = read_parts(path.read_bytes())
    for numbers in (tensors["tensors"][:-1], torch.cat([tensors["tensors"]] * 2)):
        path.write_bytes(forged(header, {**tensors, "tensors": numbers}))
        with pytest.raises(ModelFileError, match=r"too early|too many"):
            load_bundle(path)
    path.write_bytes(forged(header, {"header": tensors["header"]}))
    with pytest.raises(ModelFileError, match="'tensors' is missing"):
        load_bundle(path)


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    for path in saved_in_all_forms(tmp_path):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["stapes"])
        header["format_version"] = 99
        tensors = load_tensors(content)
        path.write_bytes(save_tensors(tensors, metadata={"stapes": json.dumps(header)}))
        with pytest.raises(ModelFileError, match="newer stapes"):
            load_bundle(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    with pytest.raises(ModelFileError, match="not a stapes model"):
        load_bundle(foreign)
    (tmp_path / "text.safetensors").write_text("hello, this is no model at all")
    with pytest.raises(ModelFileError, match="not a stapes model"):
        load_bundle(tmp_path / "text.safetensors")
    with pytest.raises(ModelFileError, match="cannot read"):
        load_bundle(tmp_path / "missing.safetensors")
    with pytest.raises(ModelFileError, match=r"no model\.safetensors"):
        load_bundle(tmp_path)


def test_a_run_folder_stands_for_its_model(saved: tuple[Bundle, Path]) -> None:
    bundle, path = saved
    assert load_bundle(path.parent).labels == bundle.labels


def test_an_exported_model_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"anything")
    with pytest.raises(ModelFileError, match=r"model\.onnx: is an exported model"):
        load_bundle(tmp_path / "model.onnx")
