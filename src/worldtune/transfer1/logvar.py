"""The uncertainty head: the log variance of the loss, by noise level."""

import math

import torch
from torch import Tensor, nn

from worldtune.transfer1.layers import Linear


class FourierFeatures(nn.Module):
    """Cosines of random frequencies and phases."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_features: int) -> None:
        """Make `num_features` features; `LogVariance.initialise` or a checkpoint fills them."""
        super().__init__()
        self.register_buffer("freqs", torch.zeros(num_features))
        self.register_buffer("phases", torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, features] for `x` [B], computed in float32 or better, in the dtype of `x`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = x.to(dtype)[:, None] * self.freqs.to(dtype) + self.phases.to(dtype)
        return (angles.cos() * math.sqrt(2.0)).to(x.dtype)


class LogVariance(nn.Sequential):
    """c_noise [B] to the log variance of the loss [B, 1]; frozen with the base in control training."""

    def __init__(self, num_features: int = 128) -> None:
        """Make the head; the names of its tensors are those of released checkpoints below `logvar.`."""
        features, linear = FourierFeatures(num_features), Linear(num_features, 1, bias=False)
        super().__init__(features, linear)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw frequencies 2 pi N(0, 1), phases 2 pi U(0, 1) and a Xavier-uniform weight from a CPU generator."""
        tensors = self.state_dict()
        num_features = len(tensors["0.freqs"])
        tensors["0.freqs"].copy_(2 * math.pi * torch.randn(num_features, generator=generator))
        tensors["0.phases"].copy_(2 * math.pi * torch.rand(num_features, generator=generator))
        tensors["1.weight"].copy_(nn.init.xavier_uniform_(torch.empty(1, num_features), generator=generator))
