"""Pretrained weights: files, the hub, and what fits a network."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.models import create_model, damp
from stapes.models.blocks import block_plan
from stapes.models.weights import (
    file_sha256,
    hub_weights,
    load_image_weights,
    read_weights,
)

ARCHITECTURE = "resnet10t"


def network(seed: int = 0, **options: Any) -> Any:
    options = {"n_classes": 3, "in_channels": 3, "architecture": ARCHITECTURE} | options
    return create_model("timm", generator=torch.Generator().manual_seed(seed), **options).eval()


def weights(seed: int = 7, **options: Any) -> dict[str, Tensor]:
    """By timm's names, of another draw."""
    return {
        name.removeprefix("body."): tensor.clone()
        for name, tensor in network(seed, **options).state_dict().items()
    }


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_training_scripts_save_is_read(tmp_path: Path, wrapped: str, suffix: str) -> None:
    stored = {
        "conv.weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).half(),
        "norm.num_batches_tracked": torch.tensor(5),
    }
    path = tmp_path / f"weights{suffix}"
    named = {f"module.{k}": v for k, v in stored.items()} if wrapped == "module." else stored
    if suffix == ".safetensors":
        save_file(named, path)
    elif wrapped in ("state_dict", "model"):
        torch.save({wrapped: named, "epoch": 3}, path)
    else:
        torch.save(named, path)
    found = read_weights(path)
    assert found.keys() == stored.keys()
    assert found["conv.weight"].dtype == torch.float32
    assert torch.equal(found["conv.weight"], stored["conv.weight"].float())
    assert found["norm.num_batches_tracked"].dtype == torch.int64


class _Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("harm-was-done"),)  # type: ignore[return-value]


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (_Harm(), {"conv.weight": torch.zeros(1), "more": _Harm()}):
        torch.save(content, "weights.pth")
        with pytest.raises(ModelFileError, match=r"weights.pth: holds more than tensors"):
            read_weights("weights.pth")
    assert not Path("harm-was-done").exists()


def _broken(tmp_path: Path) -> Iterator[tuple[Path, bytes]]:
    good = {"conv.weight": torch.zeros(50, 50)}
    torch.save(good, tmp_path / "good.pth")
    torch.save(good, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    tensors = save(good)
    yield tmp_path / "truncated.safetensors", tensors[: len(tensors) // 2]
    yield tmp_path / "garbage.safetensors", b"\x00garbage" * 9
    yield tmp_path / "empty.safetensors", b""
    for name in ("good.pth", "old.pth"):
        content = (tmp_path / name).read_bytes()
        yield tmp_path / f"truncated-{name}", content[: len(content) // 2]
    yield tmp_path / "page.pth", b"<!doctype html><title>404</title>"
    yield tmp_path / "empty.pth", b""


def test_broken_files_are_named(tmp_path: Path) -> None:
    count = 0
    for path, content in _broken(tmp_path):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=rf"{path.name}: cannot read these") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
        count += 1
    assert count == 7
    with pytest.raises(ModelFileError, match=r"nothing.pth: no such weights file"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(ModelFileError, match="no such weights file"):
        read_weights(tmp_path)
    for number, content in enumerate(([torch.zeros(1)], {}, {"a": 1}, torch.zeros(3))):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(ModelFileError, match=r"\d.pth: holds no state dict"):
            read_weights(tmp_path / f"{number}.pth")


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"stapes")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"stapes").hexdigest()
    with pytest.raises(ModelFileError, match="cannot read these weights"):
        file_sha256(tmp_path / "none")


# --- into a network ---------------------------------------------------------------------------


def test_all_but_the_head_take_the_weights() -> None:
    own, given = network(), weights()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    load_image_weights(own, given, source="test")
    for name, tensor in own.state_dict().items():
        head = name.startswith("body.fc.")
        expected = before[name] if head else given[name.removeprefix("body.")]
        assert torch.equal(tensor, expected), name
    load_image_weights(own, given, source="test", with_head=True)
    assert torch.equal(own.body.fc.weight, given["fc.weight"])


def test_only_the_first_blocks_take_them_if_so_asked() -> None:
    own, given = network(), weights()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    load_image_weights(own, given, source="test", blocks=2)
    plan = block_plan(own)
    learned = 0
    for name, tensor in own.state_dict().items():
        taken = plan.block_of[name] < 2
        learned += taken
        expected = given[name.removeprefix("body.")] if taken else before[name]
        assert torch.equal(tensor, expected), name
    assert 0 < learned < len(before)
    with pytest.raises(ConfigError, match=r"initialization.blocks = 9: this network has 5"):
        load_image_weights(own, given, source="test", blocks=9)


@pytest.mark.parametrize("architecture", [ARCHITECTURE, "densenet121", "test_vit"])
def test_a_first_convolution_of_other_channels_answers_grey_images_alike(architecture: str) -> None:
    given = weights(architecture=architecture)
    three = network(architecture=architecture)
    one = network(architecture=architecture, in_channels=1, copy_mono=False)
    two = network(architecture=architecture, in_channels=2)
    for built in (three, one, two):
        load_image_weights(built, given, source="test")
    grey = torch.randn(1, 1, 64, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = three.forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(one.forward_features(grey), expected, rtol=1e-4, atol=1e-4)
    name = three.body.default_cfg["first_conv"]
    colours, pair = (n.body.get_submodule(name).weight for n in (three, two))
    # The first two colours, louder by as much as the third one is missing.
    torch.testing.assert_close(pair, colours[:, :2] * 1.5)


def test_damping_stays_on_what_takes_weights() -> None:
    given = weights()
    own = network(damping=0.1)
    load_image_weights(own, given, source="test")
    plain = network()
    load_image_weights(plain, given, source="test")
    damp(plain, 0.1)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(own.forward_features(x), plain.forward_features(x))
    assert own.settings()["damping"] == 0.1


def test_a_cut_network_takes_the_weights_of_the_whole() -> None:
    own = network(blocks=2)
    load_image_weights(own, weights(), source="test")
    assert torch.equal(own.body.conv1[0].weight, weights()["conv1.0.weight"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer1.0.conv1.weight": None}, r"layer1.0.conv1.weight is missing"),
        ({"conv1.0.weight": torch.zeros(24, 5, 3, 3)}, r"conv1.0.weight \(24, 5, 3, 3\) instead"),
        ({"conv1.0.weight": torch.zeros(3)}, r"conv1.0.weight \(3,\) instead of \(24, 3, 3, 3\)"),
        ({"bn1.weight": torch.zeros(9)}, r"bn1.weight \(9,\) instead of \(64,\)"),
        ({"bn1.weight": torch.full((64,), torch.nan)}, "bn1.weight holds values that are not fin"),
    ],
)
def test_what_does_not_fit_changes_nothing(changed: dict[str, Tensor | None], message: str) -> None:
    own = network()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    given = {k: v for k, v in (weights() | changed).items() if v is not None}
    with pytest.raises(ModelFileError, match=rf"some.pth: .*{message}"):
        load_image_weights(own, given, source="some.pth")
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())


def test_weights_of_another_network_are_told_in_one_sentence() -> None:
    with pytest.raises(ModelFileError, match=r"not the weights of 'resnet10t' .* more\)") as caught:
        load_image_weights(network(), {"x": torch.zeros(1)}, source="some.pth")
    assert len(str(caught.value)) < 400


# --- the hub ----------------------------------------------------------------------------------


class _Hub:
    """Stands in for the hub: one repository with one file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.digest = hashlib.sha256(content).hexdigest()
        self.paths: list[str] = []
        hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def _answer(self, with_body: bool) -> None:
                hub.paths.append(self.path)
                found = self.path == "/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
                self.send_response(200 if found else 404)
                if found:
                    self.send_header("X-Repo-Commit", "0" * 40)
                    self.send_header("X-Linked-Etag", f'"{hub.digest}"')
                    self.send_header("ETag", f'"{hub.digest}"')
                    self.send_header("X-Linked-Size", str(len(hub.content)))
                else:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(hub.content) if found else 0))
                self.end_headers()
                if with_body and found:
                    self.wfile.write(hub.content)

            def do_GET(self) -> None:
                self._answer(True)

            def do_HEAD(self) -> None:
                self._answer(False)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    from huggingface_hub import constants

    running = _Hub(save(weights()))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield running
    running.close()


def test_weights_of_the_hub_are_kept_and_found_again_offline(hub: _Hub) -> None:
    path = hub_weights(ARCHITECTURE)
    assert path.read_bytes() == hub.content
    own = network()
    load_image_weights(own, read_weights(path), source=str(path))
    assert torch.equal(own.body.conv1[0].weight, weights()["conv1.0.weight"])
    asked = len(hub.paths)
    assert asked > 0
    hub.close()
    assert hub_weights(ARCHITECTURE) == path
    assert len(hub.paths) == asked


def test_a_damaged_file_in_the_cache_is_refused(hub: _Hub) -> None:
    path = hub_weights(ARCHITECTURE).resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"damaged, .*delete it"):
        hub_weights(ARCHITECTURE)


def test_without_network_and_cache_it_is_said_what_to_do(hub: _Hub) -> None:
    hub.close()
    with pytest.raises(StapesError, match=r"'resnet10t' are not on this machine.*--weights FILE"):
        hub_weights(ARCHITECTURE)


def test_what_the_hub_does_not_have_is_explained(hub: _Hub) -> None:
    with pytest.raises(ConfigError, match="the hub has no weights of this form"):
        hub_weights("resnet50_v1")
    with pytest.raises(ConfigError, match="timm knows no pretrained weights of it"):
        hub_weights("darknet17")
    assert not hub.paths
    with pytest.raises(ConfigError, match="holds no weights that can be read"):
        hub_weights("resnet18")
