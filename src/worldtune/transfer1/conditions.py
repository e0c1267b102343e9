"""What the denoiser is given beside noisy latents.

Shape suffixes: b batch, c latent channel, t latent frames, h, w latent height and width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the denoiser is given beside the noisy latents."""

    hint_bcthw: Tensor
    """Latents of the control inputs, one behind the other along the channels."""
    text: Tensor
    """Text embeddings [B, M, D]; zeros where the text is dropped."""
    fps: Tensor
    """Frames a second [B]."""
    padding_mask: Tensor
    """1 where the picture is padded, [B, 1, height, width] in pixels."""
    indicator_bt: Tensor
    """1 where a latent frame is given, [B, T]."""
    view_indices_bt: Tensor | None = None
    """Row of each latent frame's camera in the view embedding, int64 [B, T]; None for clips of one view."""

    def to(self, device: torch.device) -> "Conditions":
        """Return the same conditions on `device`."""
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device) for name, value in vars(self).items()
        }
        return Conditions(**moved)
