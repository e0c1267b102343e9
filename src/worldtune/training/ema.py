"""Power-function moving averages of the weights (Karras et al. 2024, EDM2)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def exponent(rate: float) -> float:
    """Return the exponent gamma of a relative width: the largest real root of
    g^3 + 7 g^2 + (16 - rate^-2) g + 12 - rate^-2.
    """
    inverse_square = rate**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse_square, 12.0 - inverse_square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root))))


def decay(rate: float, step: int) -> float:
    """Return the weight of the old average in the update after 0-based step `step`; 0 in the first."""
    return float((1.0 - 1.0 / (step + 1)) ** (exponent(rate) + 1.0))


class PowerEma:
    """Float32 averages of the local parts of the live weights, one for each rate."""

    def __init__(self, live: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """Start every average at the present weights."""
        self._live = live
        self.averages = {rate: {name: tensor.float().clone() for name, tensor in live.items()} for rate in rates}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after 0-based optimizer step `step`."""
        for rate, averages in self.averages.items():
            weight = 1.0 - decay(rate, step)
            for name, average in averages.items():
                average.lerp_(self._live[name].float(), weight)
