"""The model file: one ``.safetensors`` that rebuilds everything.

Network and normalisation, and a header in JSON: format version, labels, front end, network,
resolved recipe, precision, free metadata (metrics with intervals, data fingerprint, licence,
library versions, command). A digest lies over all of it. Nothing is ever unpickled.

Two layouts, told apart by the metadata key ``stapes``:

named
    For training and for reading with other tools. Each tensor under its name, ``network.*`` and
    ``normalizer.*``; the header, digest included, as JSON under the metadata key. A weight with
    many zeros is stored as ``NAME.values`` and ``NAME.positions`` (see :mod:`stapes.packing`),
    its shape under ``sparse`` in the header.

packed
    For devices. Names, shapes and types follow from rebuilding the network by its settings, so
    they are not stored: ``tensors`` holds all numbers in the order of the state dict
    (:func:`stapes.packing.pack`), ``header`` the header compressed by zlib; the metadata key has
    format version, layout and digest. Batch norm's step counters are left out.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stapes.catalogue import find_model
from stapes.config import KINDS, Recipe, parse_recipe
from stapes.errors import ConfigError, ModelFileError, UnknownNameError
from stapes.features import BandNormalizer, FrontEnd, create_frontend
from stapes.files import write_bytes
from stapes.inference.settings import AudioSettings
from stapes.models import create_model
from stapes.models.registry import network_settings
from stapes.packing import join_zeros, pack, saves_space, split_zeros, unpack

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "Precision",
    "WaveformClassifier",
    "file_size",
    "load_bundle",
    "save_bundle",
]

FORMAT_VERSION = 2
Precision = Literal["float32", "float16", "int8"]

_HEADER = "stapes"
# What a compressed header may grow to. That of a model with a confusion matrix of 1000 classes has
# 3 MB.
_MAX_HEADER_BYTES = 16 * 2**20
# Not stored when packed: counts training steps, and no network of ours computes with it.
_COUNTER = "num_batches_tracked"


class WaveformClassifier(nn.Module):
    """Front end, normalisation and network as one module.

    Shape:
        (B, C, N) waveform at the front end's sample rate -> (B, K) logits.
    """

    def __init__(self, frontend: FrontEnd, normalizer: BandNormalizer, network: nn.Module) -> None:
        super().__init__()
        self.frontend = frontend
        self.normalizer = normalizer
        self.network = network

    def forward(self, waveform: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalizer(self.frontend(waveform)))
        return logits


@dataclass(frozen=True)
class Bundle:
    """A trained classifier and where it came from.

    Attributes:
        frontend: waveform to spectrogram.
        normalizer: per-band statistics of the training part.
        network: normalised spectrogram to logits.
        labels: (K,) names in the order of the logits.
        recipe: resolved, without ``"auto"`` values.
        metadata: plain JSON values.
        precision: of the weights in the model file. ``"float16"``: the weights of convolutions and
            linear layers hold values of half precision and take two bytes each, all else four;
            ``"int8"``: the network is a quantised one.
        compact: write the packed layout; float16 and int8 always do.
    """

    frontend: FrontEnd
    normalizer: BandNormalizer
    network: nn.Module
    labels: tuple[str, ...]
    recipe: Recipe
    metadata: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    compact: bool = False

    @property
    def audio(self) -> AudioSettings:
        """What the model listens to.

        Raises:
            ConfigError: the recipe is not resolved.
        """
        fields = AudioSettings.__dataclass_fields__
        try:
            return AudioSettings(**{name: getattr(self.recipe.audio, name) for name in fields})
        except ValueError as error:
            raise ConfigError(f"audio: {error}: the model's recipe is not resolved.") from None

    def module(self) -> WaveformClassifier:
        """The whole chain in evaluation mode."""
        return WaveformClassifier(self.frontend, self.normalizer, self.network).eval()


def save_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write the model file atomically. The same bundle gives the same bytes.

    Raises:
        StapesError: the disk is full or the place cannot be written to.
        ValueError: as :func:`file_size`.
    """
    write_bytes(path, _encode(bundle))


def file_size(bundle: Bundle) -> int:
    """Exact bytes of the file that :func:`save_bundle` writes, without writing it.

    Raises:
        ValueError: a model that :func:`load_bundle` could not give back unchanged: weights that
            are no float16 values with that precision, a network that its settings do not rebuild
            (masks or batch norms folded halfway), labels that do not fit it.
    """
    return len(_encode(bundle))


def load_bundle(path: str | Path) -> Bundle:
    """Read a model file and rebuild its parts, in evaluation mode, on the CPU.

    Memory stays in proportion to the file's size, whatever the file says.

    Args:
        path: a model file, a folder that holds ``model.safetensors``, or the name of a shipped
            model (:mod:`stapes.catalogue`).

    Raises:
        ModelFileError: missing, truncated, altered, foreign, or of a newer format.
        UnknownNameError: neither a file nor a shipped model.
    """
    path = find_model(path, "safetensors")
    if path.is_dir():
        inside = path / "model.safetensors"
        if not inside.is_file():
            raise ModelFileError(
                f"{path}: this folder holds no model.safetensors; give a model file or the "
                "folder of a finished run."
            )
        path = inside
    if path.suffix.lower() == ".onnx":
        raise ModelFileError(
            f"{path}: is an exported model, for predict and listen only; give the model that it "
            "was exported from."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read this model file ({error.strerror}).") from None
    header = _read_header(content, path)
    try:
        tensors = load_tensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path}: damaged or truncated model file ({error}).") from None
    if header.get("digest") != _digest(header, tensors):
        raise ModelFileError(
            f"{path}: the content does not match its digest; the file was altered or damaged, "
            "take a fresh copy."
        )
    try:
        with _LimitedMemory(64 * 2**20 + 256 * len(content)):
            if header.get("layout") == "packed":
                return _from_packed(tensors)
            return _from_named(header, tensors)
    except (
        ConfigError,
        UnknownNameError,
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ModelFileError(
            f"{path}: this version of stapes cannot rebuild the model ({problem})."
        ) from error


# --- writing ----------------------------------------------------------------------------------


def _encode(bundle: Bundle) -> bytes:
    header = {
        "precision": bundle.precision,
        "labels": list(bundle.labels),
        "frontend": bundle.frontend.settings(),
        "network": network_settings(bundle.network),
        "normalizer": {name: list(t.shape) for name, t in bundle.normalizer.state_dict().items()},
        "recipe": bundle.recipe.model_dump(mode="json"),
        "metadata": bundle.metadata,
    }
    _check_header(header)
    state = _state(bundle.network, bundle.normalizer)
    _check_rebuilt(state, header)
    if bundle.compact or bundle.precision != "float32":
        return _packed(header, state)
    return _named(header, state)


def _named(header: dict[str, Any], state: Mapping[str, Tensor]) -> bytes:
    tensors, sparse = {}, {}
    for name, tensor in state.items():
        # The few numbers of a vector are not worth two more names.
        if tensor.ndim > 1 and saves_space(tensor.numpy()):
            values, positions = split_zeros(tensor.numpy())
            tensors[f"{name}.values"] = torch.from_numpy(values)
            tensors[f"{name}.positions"] = torch.from_numpy(positions)
            sparse[name] = list(tensor.shape)
        else:
            tensors[name] = tensor
    return _written({"layout": "named", **header, "sparse": sparse}, tensors)


def _packed(header: dict[str, Any], state: Mapping[str, Tensor]) -> bytes:
    arrays = []
    for name, dtype in _packed_types(state, header["precision"]).items():
        array = state[name].numpy()
        with np.errstate(over="ignore"):
            stored = array.astype(dtype)
        if not np.array_equal(stored, array, equal_nan=stored.dtype.kind == "f"):
            raise ValueError(
                f"precision = 'float16': {name} holds values that float16 has not; round the "
                "network with half_precision first"
            )
        arrays.append(stored)
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(f"labels, recipe and metadata take {len(text)} bytes: too many")
    tensors = {
        "header": _bytes_tensor(zlib.compress(text, 9)),
        "tensors": _bytes_tensor(pack(arrays)),
    }
    return _written({"layout": "packed"}, tensors)


def _written(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    header = {"format_version": FORMAT_VERSION, **header}
    header["digest"] = _digest(header, tensors)
    return save_tensors(dict(tensors), metadata={_HEADER: json.dumps(header)})


def _bytes_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# --- reading ----------------------------------------------------------------------------------


def _read_header(content: bytes, path: Path) -> dict[str, Any]:
    # The safetensors format: 8 bytes little-endian length, then that much JSON.
    foreign = ModelFileError(f"{path}: not a stapes model file, or a truncated one.")
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise foreign
    try:
        header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_HEADER])
        version = int(header["format_version"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise foreign from None
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: written by a newer stapes (format {version}, this one reads up to "
            f"{FORMAT_VERSION}); upgrade stapes."
        )
    return dict(header)


def _from_named(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Bundle:
    for name, shape in header.get("sparse", {}).items():
        values, positions = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.positions")
        tensors[name] = torch.from_numpy(join_zeros(values.numpy(), positions.numpy(), shape))
    return _loaded(_empty(header, compact=False), tensors)


def _from_packed(tensors: Mapping[str, Tensor]) -> Bundle:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(tensors["header"].numpy().tobytes(), _MAX_HEADER_BYTES)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the header does not end where it should")
    header = json.loads(text)
    bundle = _empty(header, compact=True)
    state = _state(bundle.network, bundle.normalizer)
    types = _packed_types(state, bundle.precision)
    arrays = unpack(
        tensors["tensors"].numpy().tobytes(),
        [(state[name].shape, dtype) for name, dtype in types.items()],
    )
    for name, array in zip(types, arrays, strict=True):
        state[name] = torch.from_numpy(array)
    return _loaded(bundle, state)


def _empty(header: Mapping[str, Any], *, compact: bool) -> Bundle:
    """The parts that a header describes, before they hold the file's numbers."""
    _check_header(header)
    channels, bands, _ = header["normalizer"]["mean"]
    return Bundle(
        frontend=create_frontend(**header["frontend"]).eval(),
        normalizer=BandNormalizer(channels, bands).eval(),
        network=_fresh_network(header["network"]).eval(),
        labels=tuple(header["labels"]),
        recipe=parse_recipe(header["recipe"], "the model file's recipe"),
        metadata=header["metadata"],
        precision=header.get("precision", "float32"),
        compact=compact,
    )


def _loaded(bundle: Bundle, state: Mapping[str, Tensor]) -> Bundle:
    bundle.network.load_state_dict(_under("network.", state))
    bundle.normalizer.load_state_dict(_under("normalizer.", state))
    return bundle


# --- what both directions share ---------------------------------------------------------------


def _state(network: nn.Module, normalizer: nn.Module) -> dict[str, Tensor]:
    state = {
        **{f"network.{name}": tensor for name, tensor in network.state_dict().items()},
        **{f"normalizer.{name}": tensor for name, tensor in normalizer.state_dict().items()},
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _packed_types(state: Mapping[str, Tensor], precision: str) -> dict[str, np.dtype[Any]]:
    """Names of what a packed file holds, in its order, and the types there."""
    types = {}
    for name, tensor in state.items():
        if name.endswith(_COUNTER):
            continue
        # Weights of convolutions and linear layers have axes in and out; what has one axis (batch
        # norm, biases, scales) is a small part of the file and a large one of the error, and so are
        # the statistics of an ensemble's members.
        weight = name.startswith("network.") and tensor.is_floating_point() and tensor.ndim > 1
        weight = weight and ".normalizer." not in name
        half = weight and precision == "float16"
        types[name] = np.dtype(np.float16) if half else tensor.numpy().dtype
    return types


def _fresh_network(settings: Mapping[str, Any]) -> nn.Module:
    # The weights drawn at construction are replaced at once: leave the caller's random state.
    with torch.random.fork_rng(devices=[]):
        return create_model(**settings)


def _check_header(header: Mapping[str, Any]) -> None:
    """What a model needs to be used, besides what rebuilding its parts checks.

    Raises:
        ValueError: one sentence.
    """
    labels, network = header["labels"], header["network"]
    if not all(isinstance(label, str) for label in labels) or len(labels) != network["n_classes"]:
        raise ValueError(f"{len(labels)} labels for {network['n_classes']} classes")
    if not isinstance(header["metadata"], dict):
        raise ValueError("the metadata are no mapping")
    precision = header.get("precision", "float32")
    if precision not in get_args(Precision):
        raise ValueError(f"precision = {precision!r}: one of {', '.join(get_args(Precision))}")
    computes = network.get("precision", "float32")
    if (precision == "int8") != (computes == "int8"):
        raise ValueError(f"precision = {precision!r}: the network computes in {computes}")
    # The ranges of recipes hold here too: a front end's size has no other bound.
    frontend = header["frontend"]
    config = KINDS["features"].get(frontend["name"])
    if config is not None:
        try:
            config.model_validate({k: v for k, v in frontend.items() if k in config.model_fields})
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(f"front end: {problem['loc'][-1]}: {problem['msg']}") from None


def _check_rebuilt(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Refuse to write what could not be read: tensors that the settings do not give."""
    rebuilt = _state(_fresh_network(header["network"]), nn.Module())

    def kinds(tensors: Mapping[str, Tensor]) -> set[tuple[str, torch.Size, torch.dtype]]:
        return {(n, t.shape, t.dtype) for n, t in tensors.items() if n.startswith("network.")}

    differing = sorted({name for name, *_ in kinds(state) ^ kinds(rebuilt)})
    if differing:
        raise ValueError(
            f"the network's settings do not rebuild it ({differing[0]} and "
            f"{len(differing) - 1} other tensors differ); finish pruning or quantising it first"
        )


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    plain = {key: value for key, value in header.items() if key != "digest"}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().reshape(-1).data)
    return digest.hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class _LimitedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stop before the tensors made meanwhile take more bytes than this in all.

    A header of a hundred bytes can ask for a network of terabytes; the digest only tells damage
    from intent.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if not read and "device" in kwargs and kwargs["device"] != torch.device("meta"):
            # Makes a tensor from numbers alone: first one without memory, to see its size.
            self._spend(func(*args, **{**kwargs, "device": "meta"}))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            # Views and results in place take nothing, nor does what is on the meta device.
            if isinstance(made, Tensor) and not made.is_meta and _storage(made) not in read:
                self._spend(made)
        return result

    def _spend(self, made: Tensor) -> None:
        self.left -= made.untyped_storage().nbytes()
        if self.left < 0:
            raise ValueError("it is too large for the file")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
