"""Decomposed convolutions: 1x1 to fewer channels, kxk among those, 1x1 to all channels.

::

    (B, C_in, F, T) ─ 1x1 ─ (B, R, F, T) ─ kxk ─ (B, R, F, T) ─ 1x1 ─ (B, C_out, F, T)

R is C_out / Z in the paper. There is no non-linearity in between: the three together are one
convolution whose weight has low rank::

    W[o, i, f, t] = sum over r, s of  expand[o, r] * core[r, s, f, t] * reduce[s, i]

Reference:
    Koutini, Henkel, Eghbal-zadeh, Widmer, "Low-Complexity Models for Acoustic Scene
    Classification Based on Receptive Field Regularization and Frequency Damping", DCASE 2020,
    section 2.3.

The three of a trained convolution are those of its truncated Tucker-2 decomposition: the weight's
two channel axes are projected to their R most important directions,
:func:`channel_factors`. See Kim et al., "Compression of Deep Convolutional Neural Networks for
Fast and Low Power Mobile Applications", ICLR 2016, and, for the iteration, De Lathauwer, De Moor,
Vandewalle, "On the Best Rank-1 and Rank-(R1, R2, ..., RN) Approximation of Higher-Order Tensors",
SIAM J. Matrix Anal. Appl. 21(4), 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DecomposedConv2d", "channel_factors"]


class DecomposedConv2d(nn.Module):
    """Three convolutions in a row that stand for one.

    Args:
        reduce: 1x1, from all input channels to R.
        core: kxk, R to R channels, size kept.
        expand: 1x1, from R to all output channels.

    Shape:
        - input: (B, C_in, F, T)
        - output: (B, C_out, F, T)
    """

    def __init__(self, reduce: nn.Module, core: nn.Module, expand: nn.Module) -> None:
        super().__init__()
        self.reduce = reduce
        self.core = core
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.core(self.reduce(x)))
        return y


def channel_factors(weight: Tensor, rank: int, *, sweeps: int = 3) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the output and the input channels that keep most of a weight.

    With ``O`` and ``I`` the two bases, ``O O^T W I I^T`` (along the channel axes) is close to the
    nearest weight, in least squares, that a :class:`DecomposedConv2d` with ``rank`` channels
    inside can compute. The bases are the leading singular vectors of the weight's two unfoldings,
    each then improved ``sweeps`` times given the other, which never makes the error larger; a 1x1
    kernel is a matrix, and its truncated SVD the optimum from the start.

    >>> weight = torch.arange(6.0).reshape(3, 1, 1, 2)  # one input channel
    >>> outer, inner = channel_factors(weight, 2)
    >>> projected = torch.einsum("oift,or,pr->pift", weight.double(), outer, outer)
    >>> torch.allclose(projected, weight.double()), inner.tolist()
    (True, [[1.0, 0.0]])

    Args:
        weight: of the convolution, as it computes with it.
        rank: channels inside, R.
        sweeps: rounds of improvement.

    Shape:
        - weight: (C_out, C_in, K_F, K_T)
        - output: (C_out, R) and (C_in, R), float64; columns beyond those that the weight can need
          (more than C_in of them for C_in channels, for instance) are zero.
    """
    with torch.no_grad():
        w = weight.detach().double()
        outer = _leading(w.flatten(1), rank)
        inner = _leading(w.transpose(0, 1).flatten(1), rank)
        for _ in range(sweeps):
            outer = _leading(torch.einsum("oift,ir->orft", w, inner).flatten(1), rank)
            inner = _leading(torch.einsum("oift,or->irft", w, outer).flatten(1), rank)
    return _padded(outer, rank), _padded(inner, rank)


def _leading(unfolding: Tensor, rank: int) -> Tensor:
    """Left singular vectors of the largest singular values, signs fixed: (rows, <= rank)."""
    vectors: Tensor = torch.linalg.svd(unfolding, full_matrices=False).U[:, :rank]
    # A singular vector is one only up to its sign: the largest entry shall be positive.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def _padded(basis: Tensor, rank: int) -> Tensor:
    return nn.functional.pad(basis, (0, rank - basis.shape[1]))
