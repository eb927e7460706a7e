"""Pretrained weights of image networks: from timm's hub or from a file, checked, into a network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stapes.errors import ConfigError, ModelFileError, StapesError
from stapes.models.blocks import block_plan, check_blocks
from stapes.models.imagenet import ImageNetwork, timm_model_name

__all__ = ["file_sha256", "hub_weights", "load_image_weights", "read_weights"]

_NAMES_IN_HUB = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile("[0-9a-f]{64}")
_SHOWN = 3  # names of tensors in a message


def hub_weights(architecture: str) -> Path:
    """ImageNet weights of an architecture in timm's hub, from its cache or downloaded into it.

    The cache keeps a file under the digest that the hub states for it; the content is checked
    against that.

    Args:
        architecture: timm's name; with a tag such as ``resnet50.a1_in1k`` those of that training,
            else timm's first choice.

    Returns:
        The file in the cache.

    Raises:
        StapesError: the hub cannot be reached and the cache lacks the file.
        ModelFileError: the file in the cache is damaged.
        ConfigError: timm knows no weights of this network.
    """
    name = timm_model_name(architecture)
    if name != architecture:
        raise ConfigError(
            f"model.architecture = '{architecture}': the hub has no weights of this form; give a "
            "file with --weights."
        )
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise ConfigError(
            f"model.architecture = '{architecture}': timm knows no pretrained weights of it; give "
            "a file with --weights, or train with initialization.weights = 'random'."
        )
    repository, _, revision = str(known.hf_hub_id).partition("@")
    for filename in (known.hf_hub_filename,) if known.hf_hub_filename else _NAMES_IN_HUB:
        try:
            found = Path(hf_hub_download(repository, filename, revision=revision or None))
        except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, so it comes first
            raise _unreachable(architecture) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise _unreachable(architecture) from error
        stated = found.resolve().name
        if _SHA256.fullmatch(stated) and file_sha256(found) != stated:
            raise ModelFileError(
                f"{found}: damaged, it does not have the digest that the hub states; delete it "
                "and run the command again."
            )
        return found
    raise ConfigError(f"{repository}: holds no weights that can be read; give --weights FILE.")


def _unreachable(architecture: str) -> StapesError:
    return StapesError(
        f"The ImageNet weights of '{architecture}' are not on this machine, and the hub that has "
        "them cannot be reached. Go online once (they are kept), give a file with --weights FILE, "
        "or start from random weights with --set initialization.weights=random."
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weights file, by name, floating point ones in float32.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote of a state dict; only tensors are
            read from that, nothing in it is run.

    Raises:
        ModelFileError: missing, damaged, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such weights file.")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelFileError(f"{path}: cannot read these weights ({_first_line(error)}).") from None
    except Exception as error:  # pickle's own errors have no common parent
        # torch names what it refuses to build or call; else the bytes make no sense.
        if any(f"Unsupported {what}" in str(error) for what in ("global", "class")):
            raise ModelFileError(
                f"{path}: holds more than tensors, which is not read; save its state dict as "
                ".safetensors."
            ) from None
        raise ModelFileError(
            f"{path}: cannot read these weights (damaged, or another kind of file)."
        ) from None
    for outer in ("state_dict", "model"):  # as training scripts save it
        if isinstance(content, Mapping) and isinstance(content.get(outer), Mapping):
            content = content[outer]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise ModelFileError(f"{path}: holds no state dict, that is, tensors by their names.")
    return {
        str(name).removeprefix("module."): v.float() if v.is_floating_point() else v
        for name, v in content.items()
    }


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read these weights ({error.strerror}).") from None


def load_image_weights(
    network: ImageNetwork,
    weights: Mapping[str, Tensor],
    *,
    source: str,
    blocks: int | None = None,
    with_head: bool = False,
) -> None:
    """Put pretrained weights into a network.

    A first convolution with other than three input channels takes the three colours' kernels
    summed (for one), or in turn and scaled to keep the level, as timm does.

    Args:
        network: changed in place; damping stays on it.
        weights: by timm's names.
        source: of the weights, for messages.
        blocks: only the first so many blocks take them; none: all.
        with_head: the classifier takes its own, too, which must have as many classes.

    Raises:
        ModelFileError: the weights are of another network.
        ConfigError: more blocks than there are.
    """
    from timm.models import adapt_input_conv

    plan = block_plan(network)
    if blocks is not None:
        check_blocks(blocks, plan.names, "initialization.blocks")
    own = network.state_dict(keep_vars=True)
    first = {f"body.{n}.weight" for n in _first_convolutions(network)}
    heads = tuple(f"{name}." for name in network.classifier())
    missing, misfits = [], []
    chosen: dict[Tensor, Tensor] = {}
    for name, target in own.items():
        plain = name.replace(".parametrizations.weight.original", ".weight")
        if plain.startswith(heads) and not with_head:
            continue
        given = weights.get(plain.removeprefix("body."))
        if given is None:
            # Neither a count of training steps, which nothing computes with, nor damping's window.
            counter = name.endswith("num_batches_tracked")
            if not counter and (plain != name or ".parametrizations." not in name):
                missing.append(plain)
            continue
        colours = given.shape[1:2] == (3,) and given.ndim == target.ndim
        if plain in first and colours and target.shape[1] != 3:
            given = adapt_input_conv(target.shape[1], given)
        if given.shape != target.shape:
            misfits.append(f"{plain} {tuple(given.shape)} instead of {tuple(target.shape)}")
        elif not given.isfinite().all():
            raise ModelFileError(
                f"{source}: {plain} holds values that are not finite; take a fresh copy."
            )
        elif blocks is None or plan.block_of[name] < blocks:
            chosen[target] = given
    if missing or misfits:
        problems = [f"{name} is missing" for name in missing] + misfits
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelFileError(
            f"{source}: not the weights of '{network.settings()['architecture']}' "
            f"({', '.join(problems[:_SHOWN])}{more}); give the file of that network, or its name "
            "with --set model.architecture=NAME."
        )
    with torch.no_grad():
        for target, given in chosen.items():
            target.copy_(given)


def _first_convolutions(network: nn.Module) -> tuple[str, ...]:
    named = network.body.default_cfg["first_conv"]  # type: ignore[index, union-attr]
    return (named,) if isinstance(named, str) else tuple(named)
