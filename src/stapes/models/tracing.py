"""Run a network for its shapes only: no arithmetic, no data, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["evaluating", "input_channels", "meta_input", "run_on_meta"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for a while; each gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Entry(nn.Module):
    # functional_call swaps the parameters of a module whose forward it calls: make any method one.
    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, x: torch.Tensor) -> Any:
        # Through __call__ where that is possible, so that the network's own hooks are told.
        return self.model(x) if self.method == "forward" else getattr(self.model, self.method)(x)


def meta_input(model: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    """An input without storage, in the precision of the network's weights.

    Args:
        model: the network.
        shape: batch included.
    """
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.empty(tuple(shape), dtype=next(dtypes, torch.float32), device="meta")


def run_on_meta(
    model: nn.Module,
    x: torch.Tensor,
    mode: TorchDispatchMode | None = None,
    *,
    method: str = "forward",
    enter: Callable[[str], None] | None = None,
    leave: Callable[[str, Any], None] | None = None,
) -> Any:
    """Call a network on the meta device, in eval mode, with its own weights untouched.

    Args:
        model: any network that takes one tensor.
        x: that tensor, from :func:`meta_input`.
        mode: sees every operation, if given.
        method: what to call.
        enter: told the name of each submodule before it runs (the network itself is ``""``).
        leave: told the name and the output of each submodule after it ran.

    Returns:
        The output, without storage.
    """
    entry = _Entry(model, method)
    state = {
        name: tensor.detach().to("meta")
        for tensors in (entry.named_parameters(), entry.named_buffers())
        for name, tensor in tensors
    }
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():
            if enter is not None:
                before = module.register_forward_pre_hook(_before(enter, name))
                stack.callback(before.remove)
            if leave is not None:
                after = module.register_forward_hook(_after(leave, name))
                stack.callback(after.remove)
        stack.enter_context(torch.no_grad())
        if mode is not None:
            stack.enter_context(mode)
        return torch.func.functional_call(entry, state, (x,))


def _before(tell: Callable[[str], None], name: str) -> Callable[..., None]:
    return lambda _module, _inputs: tell(name)


def _after(tell: Callable[[str, Any], None], name: str) -> Callable[..., None]:
    return lambda _module, _inputs, output: tell(name, output)


def input_channels(model: nn.Module) -> int:
    """Channels that a network expects: its own word, or its first convolution's.

    Raises:
        ValueError: neither is there.
    """
    stated = getattr(model, "in_channels", None)
    if isinstance(stated, int):
        return stated
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("the network has no two-dimensional convolution")
