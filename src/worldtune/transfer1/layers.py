"""Linear layers and norms that also work on parameters spread over a tensor-parallel group."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldtune.parallel.tokens import SINGLE, TokenParallel, local

NORM_EPS = 1e-6
"""Added under the root in RMS norms and layer norms."""


class Linear(nn.Linear):
    """A linear layer on this rank's piece of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class TokenLinear(nn.Linear):
    """A linear layer with the whole weight on each rank's tokens."""

    parallel: TokenParallel = SINGLE

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        weight = self.parallel.sum_gradient_over_tokens(local(self.weight))
        bias = None if self.bias is None else self.parallel.sum_gradient_over_tokens(local(self.bias))
        return F.linear(x, weight, bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last dim, with statistics in float32 or better."""

    def __init__(self, channels: int) -> None:
        """Make a norm over `channels` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., channels]."""
        return F.rms_norm(x, (x.shape[-1],), local(self.weight), NORM_EPS)


class HeadNorm(RMSNorm):
    """The norm of queries and keys: one weight for all heads, of which a rank has a part."""

    parallel: TokenParallel = SINGLE

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., N, d] over the channels of a head."""
        return F.rms_norm(x, (x.shape[-1],), self.parallel.sum_gradient_over_heads(local(self.weight)), NORM_EPS)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of `x` [L, B, D] without weights, then scale and shift [B, D]."""
    return F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS) * (1 + scale) + shift
