"""The weights that training starts from, on tiny networks and a few real recordings."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hits import LABELS, write_few_hits
from safetensors.torch import save_file
from torch import nn

import stapes
from stapes.bundle import Bundle, load_bundle, save_bundle
from stapes.compression import prune_channels, quantize, remove_channels
from stapes.compression.masks import finish
from stapes.compression.pruning import prune
from stapes.config import Recipe, load_recipe, parse_recipe
from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.features import BandNormalizer, create_frontend
from stapes.models import create_model
from stapes.models.registry import network_settings
from stapes.models.weights import file_sha256, read_weights
from stapes.training.finished import read_run
from stapes.training.initialization import (
    adopt_model,
    describe_origin,
    initialize,
    keep_pruned,
    new_network,
    pin_weights,
    read_parent,
    starting_network,
)

OLD, NEW = ("cat", "dog", "owl"), ("owl", "wren", "cat", "fox")


def _randomized(network: nn.Module) -> nn.Module:
    """Every tensor different from what a fresh network has, norms included."""
    generator = torch.Generator().manual_seed(7)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return network


def _bundle(network: nn.Module, labels: Iterable[str] = OLD, **model: object) -> Bundle:
    """A model of 8 kHz recordings around any network."""
    recipe = load_recipe(
        "small",
        ["audio.sample_rate=8000", "audio.window_seconds=0.5", "features.n_fft=256",
         "features.hop_length=100", "features.n_mels=32", "training.epochs=1"],
    )  # fmt: skip
    recipe = parse_recipe({**recipe.model_dump(), "model": model})
    frontend = create_frontend(sample_rate=8000, **recipe.features.model_dump())
    normalizer = BandNormalizer(1, 32).fit([np.arange(64.0).reshape(1, 32, 2)])
    data = {"name": "pets", "train_clips": 9, "licence": "CC0", "citation": "Nobody 1999"}
    return Bundle(frontend, normalizer, network, tuple(labels), recipe, {"data": data})


def _cp_resnet(labels: Iterable[str] = OLD) -> Bundle:
    options = {"name": "cp_resnet", "rho": 2, "width": 4, "blocks": [2, 1, 0], "damping": 0.1}
    network = create_model(n_classes=len(tuple(labels)), **options)
    return _bundle(_randomized(network), labels, **options)


def _timm(architecture: str = "test_resnet") -> Bundle:
    options = {"name": "timm", "architecture": architecture, "damping": 0.1}
    return _bundle(_randomized(create_model(n_classes=3, **options)), **options)


def _recipe(path: Path, **initialization: object) -> Recipe:
    start = {"weights": "model", "file": str(path), **initialization}
    tree = {"name": "x", "initialization": start, "training": {"epochs": 1}}
    return pin_weights(adopt_model(parse_recipe(tree)))


def _saved(bundle: Bundle, folder: Path) -> Path:
    save_bundle(bundle, folder / "old.safetensors")
    return folder / "old.safetensors"


def _started(recipe: Recipe, labels: tuple[str, ...] = NEW, seed: int = 0) -> nn.Module:
    return starting_network(recipe, labels, in_channels=1, seed=seed)


def _head(network: nn.Module) -> set[str]:
    """Tensors of the last layer, known by hand."""
    names = ("head.", "body.fc.", "body.head.fc.")
    return {name for name in network.state_dict() if name.startswith(names)}


# --- from a model -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_cp_resnet, _timm, lambda: _timm("test_mambaout")],
                         ids=["cp_resnet", "timm", "timm, head of several layers"])  # fmt: skip
def test_labels_of_both_keep_their_rows_and_others_are_drawn(make: object, tmp_path: Path) -> None:
    old = make()  # type: ignore[operator]
    recipe = _recipe(_saved(old, tmp_path))
    found = _started(recipe).state_dict()
    given = old.network.state_dict()
    fresh = new_network(recipe, n_classes=4, in_channels=1, seed=0).state_dict()
    head = {n for n in _head(old.network) if given[n].ndim > 0}
    assert head
    for name, tensor in found.items():
        if name not in head:
            assert torch.equal(tensor, given[name]), name
            continue
        assert torch.equal(tensor[0], given[name][2]), "owl"
        assert torch.equal(tensor[2], given[name][0]), "cat"
        assert torch.equal(tensor[[1, 3]], fresh[name][[1, 3]]), "wren and fox"
    weights = next(n for n in head if given[n].ndim > 1)
    assert not torch.equal(found[weights][1], found[weights][3])


def test_the_same_labels_in_another_order_say_the_same(tmp_path: Path) -> None:
    old = _cp_resnet()
    network = _started(_recipe(_saved(old, tmp_path)), ("owl", "cat", "dog"))
    x = torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = old.network.eval()(x), network(x)
    torch.testing.assert_close(after, before[:, [2, 0, 1]])


def test_as_many_other_labels_are_all_drawn(tmp_path: Path) -> None:
    old = _cp_resnet()
    recipe = _recipe(_saved(old, tmp_path))
    labels = ("ant", "bee", "fly")
    found = _started(recipe, labels).state_dict()
    fresh = new_network(recipe, n_classes=3, in_channels=1, seed=0).state_dict()
    for name in _head(old.network):
        if found[name].ndim > 0:
            assert torch.equal(found[name], fresh[name]), name
    # Another seed draws others.
    again = _started(recipe, labels, seed=1).state_dict()
    assert not torch.equal(again["head.conv.weight"], found["head.conv.weight"])


@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_only_the_first_blocks_take_the_weights(blocks: int, tmp_path: Path) -> None:
    old = _cp_resnet()
    recipe = _recipe(_saved(old, tmp_path), blocks=blocks)
    found, given = _started(recipe).state_dict(), old.network.state_dict()
    fresh = new_network(recipe, n_classes=4, in_channels=1, seed=0).state_dict()
    order = ("stem.", "stage1.block1.", "stage1.block2.", "stage2.block1.")
    for name, tensor in found.items():
        expected = given if name.startswith(order[:blocks]) else fresh
        assert torch.equal(tensor, expected[name]), name


def test_sections_come_from_the_model_and_the_rest_from_the_recipe(tmp_path: Path) -> None:
    old = _cp_resnet()
    path = _saved(old, tmp_path)
    own = load_recipe("finetune", ["initialization.weights=model", f"initialization.file={path}",
                                   "quantization.precision=float16"])  # fmt: skip
    recipe = adopt_model(own)
    for name in ("audio", "features", "normalization", "model"):
        assert getattr(recipe, name) == getattr(old.recipe, name)
        assert getattr(recipe, name) != getattr(own, name) or name == "normalization"
    for name in ("augment", "training", "pruning", "quantization"):
        assert getattr(recipe, name) == getattr(own, name)
    assert pin_weights(recipe).initialization.sha256 == file_sha256(path)
    assert adopt_model(recipe) == recipe, "twice is once"


def test_other_recipes_come_back_as_they_are() -> None:
    recipe = load_recipe("small")
    assert adopt_model(recipe) is recipe
    assert pin_weights(recipe) is recipe
    assert read_parent(recipe) is None
    assert describe_origin(recipe, None) == {}


def test_a_recipe_with_another_network_than_the_models_is_refused(tmp_path: Path) -> None:
    recipe = _recipe(_saved(_cp_resnet(), tmp_path))
    assert recipe.model.name == "cp_resnet"
    wider = recipe.model_copy(update={"model": recipe.model.model_copy(update={"width": 8})})
    with pytest.raises(ConfigError, match=r"model of the recipe are not those of .*old"):
        new_network(wider, n_classes=2, in_channels=1, seed=0)
    with pytest.raises(ConfigError, match="model of the recipe"):
        new_network(wider, n_classes=2, in_channels=1, seed=0, parent=read_parent(recipe))


def test_taken_out_channels_stay_out(tmp_path: Path) -> None:
    old = _cp_resnet()
    smaller = remove_channels(prune_channels(old.network, keep=0.5))
    assert "channels" in network_settings(smaller)
    network = _started(_recipe(_saved(replace(old, network=smaller), tmp_path)))
    for name, tensor in smaller.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(network.state_dict()[name], tensor), name
    assert network_settings(network) == network_settings(smaller) | {"n_classes": 4}


def test_zeros_of_a_pruned_network_are_found_and_held() -> None:
    whole = _cp_resnet().network
    assert not keep_pruned(whole)
    pruned = finish(prune(whole, keep=0.5))
    before = {n: t.clone() for n, t in pruned.state_dict().items()}
    assert keep_pruned(pruned)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        pruned(torch.randn(4, 1, 32, 40)).square().mean().backward()
        optimizer.step()
    after = finish(pruned).state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        if tensor.ndim == 4:
            assert torch.equal(after[name] == 0, tensor == 0), name


def test_what_cannot_be_trained_further_says_so(tmp_path: Path) -> None:
    old = _cp_resnet()
    x = torch.randn(4, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    eight = replace(old, network=quantize(old.network.eval(), [x]), precision="int8")
    with pytest.raises(ModelFileError, match=r"old\.safetensors: an int8 model .*float32"):
        _recipe(_saved(eight, tmp_path))
    (tmp_path / "old.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="not a stapes model file"):
        _recipe(tmp_path / "old.safetensors")
    with pytest.raises(ModelFileError, match=r"gone\.safetensors: cannot read"):
        _recipe(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot read"):
        _recipe(tmp_path / "empty")


def test_more_blocks_than_there_are_are_refused(tmp_path: Path) -> None:
    recipe = _recipe(_saved(_cp_resnet(), tmp_path), blocks=5)
    with pytest.raises(ConfigError, match=r"initialization.blocks = 5: this network has 4 blocks"):
        _started(recipe)


def test_drawing_leaves_the_random_state_alone(tmp_path: Path) -> None:
    recipe = _recipe(_saved(_cp_resnet(), tmp_path))
    before = torch.get_rng_state()
    _started(recipe)
    assert torch.equal(torch.get_rng_state(), before)


# --- from ImageNet's weights ------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict as timm has it, of a thousand classes."""
    torch.manual_seed(3)
    network = create_model("timm", n_classes=1000, in_channels=3, architecture="test_resnet")
    body = _randomized(network).get_submodule("body")
    save_file(body.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def _imagenet(weights: Path, *more: str) -> Recipe:
    return load_recipe(
        "transfer",
        ["model.architecture=test_resnet", f"initialization.file={json.dumps(str(weights))}",
         "audio.sample_rate=8000", "audio.window_seconds=1", "features.n_fft=256",
         "features.hop_length=80", *more],
    )  # fmt: skip


# Names of timm, by block, in the order of the forward pass.
IMAGE_BLOCKS = ("body.conv1. body.bn1.", "body.layer1.", "body.layer2.", "body.layer3.",
                "body.layer4.")  # fmt: skip


@pytest.mark.parametrize("blocks", [None, 0, 2, 5])
def test_blocks_behind_keep_what_the_seed_drew(weights: Path, blocks: int | None) -> None:
    more = [] if blocks is None else [f"initialization.blocks={blocks}"]
    recipe = pin_weights(_imagenet(weights, *more))
    found = _started(recipe, seed=5).state_dict()
    plain = recipe.model_copy(update={"initialization": load_recipe("small").initialization})
    fresh = _started(plain, seed=5).state_dict()
    given = {f"body.{n}": t for n, t in read_weights(weights).items()}
    taken = tuple(" ".join(IMAGE_BLOCKS[:blocks]).split())
    for name, tensor in found.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, (given if name.startswith(taken) else fresh)[name]), name


def test_weights_are_pinned_by_their_digest(weights: Path) -> None:
    recipe = pin_weights(_imagenet(weights))
    assert recipe.initialization.sha256 == file_sha256(weights)
    assert pin_weights(recipe) == recipe
    other = _imagenet(weights, f"initialization.sha256={'0' * 64}")
    with pytest.raises(ModelFileError, match=r"not the weights that .*sha256 names .*000000000000"):
        pin_weights(other)
    with pytest.raises(ModelFileError, match="not the weights"):
        initialize(_started(load_recipe("small")), other)
    with pytest.raises(ModelFileError, match="nowhere"):
        pin_weights(_imagenet(weights.with_name("nowhere")))
    assert describe_origin(recipe, None) == {
        "weights": "imagenet", "sha256": file_sha256(weights), "architecture": "test_resnet",
    }  # fmt: skip


def test_networks_without_imagenet_weights_say_so() -> None:
    recipe = load_recipe("small", ["initialization.weights=imagenet"])
    with pytest.raises(ConfigError, match=r"only networks of timm .*'cp_resnet'"):
        pin_weights(recipe)


# --- whole runs -------------------------------------------------------------------------------

TINY = (
    "training.epochs=2", "model.width=4", "model.blocks=[2, 0, 0]", "features.n_mels=32",
    "audio.window_seconds=0.5", "training.batch_size=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_hits(tmp_path_factory.mktemp("hits"))


@pytest.fixture(scope="module")
def parent(hits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two of the three classes, pruned."""
    folder = tmp_path_factory.mktemp("parent")
    lines = hits.read_text(encoding="utf-8").splitlines()
    two = [line for line in lines if f",{LABELS[2]}," not in line]
    (folder / "two.csv").write_text("\n".join(two) + "\n", encoding="utf-8")
    overrides = [*TINY, "pruning.method=magnitude", "pruning.keep=0.5"]
    return stapes.train(folder / "two.csv", overrides=overrides, out=folder / "run").folder


def test_a_run_goes_on_from_another(hits: Path, parent: Path, tmp_path: Path) -> None:
    result = stapes.train(
        hits, init=parent, overrides=["training.epochs=2", "initialization.frozen_blocks=1"],
        out=tmp_path / "run",
    )  # fmt: skip
    old, new = load_bundle(parent), load_bundle(result.model)
    assert result.recipe.name == "finetune"
    assert new.labels == tuple(sorted(LABELS))
    assert new.frontend.settings() == old.frontend.settings()
    for tensor, before in zip(
        new.normalizer.state_dict().values(), old.normalizer.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, before), "its weights have learnt from these statistics"
    given, found = old.network.state_dict(), new.network.state_dict()
    for name, tensor in found.items():
        if name.startswith("stem."):
            assert torch.equal(tensor, given[name]), name
        elif name.startswith("stage") and tensor.ndim == 4:
            assert torch.equal(tensor == 0, given[name] == 0), name
            assert not torch.equal(tensor, given[name]), name
    assert new.metadata["origin"] == {
        "weights": "model",
        "sha256": file_sha256(parent / "model.safetensors"),
        "recipe": "small",
        "data": old.metadata["data"],
    }
    assert not result.notes
    # What was made from it tells of both.
    third = stapes.train(
        hits, init=result.model, overrides=["training.epochs=1"], out=tmp_path / "third"
    )
    assert load_bundle(third.model).metadata["origin"]["origin"] == new.metadata["origin"]
    assert any("recordings called 'manifest', too" in note for note in third.notes)
    # The run can be taken up where its parent lies elsewhere, but not with another one.
    shutil.copytree(parent, tmp_path / "moved")
    before = result.model.read_bytes()
    again = stapes.train(
        hits, init=tmp_path / "moved",
        overrides=["training.epochs=2", "initialization.frozen_blocks=1"], out=tmp_path / "run",
    )  # fmt: skip
    assert again.score == result.score
    assert result.model.read_bytes() == before
    with pytest.raises(StapesError, match="holds a run with other data, recipe"):
        stapes.train(
            hits, init=result.model,
            overrides=["training.epochs=2", "initialization.frozen_blocks=1"],
            out=tmp_path / "run",
        )  # fmt: skip


def test_a_run_is_quantised_though_its_parent_is_gone(
    hits: Path, parent: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(parent, tmp_path / "parent"))
    result = stapes.train(hits, init=copy, overrides=["training.epochs=1"], out=tmp_path / "run")
    shutil.rmtree(copy)
    small = stapes.training.finished.quantize_run(result.folder, "float16")
    assert (
        load_bundle(small.model).metadata["origin"]
        == (load_bundle(result.model).metadata["origin"])
    )
    # And half precision can be trained further.
    more = stapes.train(hits, init=small.folder, overrides=["training.epochs=1"],
                        out=tmp_path / "more")  # fmt: skip
    assert load_bundle(more.model).precision == "float32"


def test_killed_and_taken_up_it_ends_with_the_same_weights(
    hits: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stapes.training.loop._SAVE_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    class Killing:
        left = 0

        def progress(self, what: str, *_: object) -> None:
            if what.startswith("Training"):
                self.left -= 1
                if self.left == 0:
                    raise Killed

        def status(self, _: str) -> None: ...
        def note(self, _: str) -> None: ...

    options = {"init": parent, "overrides": ["training.epochs=3"]}
    whole = stapes.train(hits, out=tmp_path / "whole", **options)
    reporter, rng, kills = Killing(), random.Random(0), 0
    for _ in range(3):
        reporter.left = rng.randrange(2, 7)
        try:
            stapes.train(hits, out=tmp_path / "run", reporter=reporter, **options)
        except Killed:
            kills += 1
    assert kills > 1
    stopped = stapes.train(hits, out=tmp_path / "run", **options)
    assert stopped.model.read_bytes() == whole.model.read_bytes()


def test_wrong_use_is_one_sentence(hits: Path, parent: Path, tmp_path: Path) -> None:
    def train(*overrides: str) -> None:
        stapes.train(hits, init=parent, overrides=overrides, out=tmp_path / "run")

    for section in ("model.width=8", "audio.sample_rate=8000", "features.n_mels=16",
                    "normalization.method=none"):  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"--set {section}: that section comes from .*run, whose"
        ):
            train(section)
    for field in ("blocks", "frozen_blocks"):
        with pytest.raises(ConfigError, match=f"initialization.{field} = 4: .* 3 blocks"):
            train(f"initialization.{field}=4")
    assert not (tmp_path / "run").exists()


def test_a_recipe_file_may_name_the_model(hits: Path, parent: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[initialization]\nweights = 'model'\n"
        f"file = {json.dumps(str(parent))}\n[training]\nepochs = 1\n",
        encoding="utf-8",
    )
    result = stapes.train(hits, recipe=path, out=tmp_path / "run")
    assert result.recipe.model == load_bundle(parent).recipe.model
    assert read_run(result.folder)[1] == result.recipe
    with pytest.raises(ConfigError, match=r"audio\.channels=2: that section comes from"):
        stapes.train(hits, recipe=path, overrides=["audio.channels=2"], out=tmp_path / "other")
