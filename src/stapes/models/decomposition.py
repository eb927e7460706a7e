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
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DecomposedConv2d"]


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
