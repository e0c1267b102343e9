"""Rotary position embedding over time, height and width.

Shapes: L tokens (t, h, w flattened), B batch, N heads, d channels of a head.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError

RopeAngles = Literal["bfloat16", "exact"]

BASE = 10000.0
"""Longest wavelength over 2 pi, before the NTK ratio."""
BASE_FPS = 24.0
"""Frame rate at which one frame is one unit of time."""


class Rotation(NamedTuple):
    """Cosines and sines of the angles, [L, B or 1, 1, d], float32."""

    cos: Tensor
    sin: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Rotate `x` [L, B, N, d]; channel j and channel j + d/2 form a pair (not neighbours)."""
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        first, second = precise.chunk(2, dim=-1)
        return (precise * self.cos + torch.cat((-second, first), dim=-1) * self.sin).to(x.dtype)


class RotaryPositions(nn.Module):
    """Angles of each token, by the NTK-scaled frequencies of its three axes.

    `angles="bfloat16"` does all arithmetic before the final cast in bfloat16, as the modules did that trained the
    released weights; at 7B the angles differ by up to 0.148 rad from the exact ones. `"exact"` computes in float64.
    Both give float32 and depend on nothing but the arguments: not on the module's dtype or device.
    """

    seq: Tensor

    def __init__(
        self,
        head_channels: int,
        *,
        len_t: int,
        len_h: int,
        len_w: int,
        ratio_t: float,
        ratio_h: float,
        ratio_w: float,
        angles: RopeAngles,
    ) -> None:
        """Make the frequencies of a head with `head_channels` channels, for grids of up to len_h x len_w patches."""
        super().__init__()
        self.len_h = len_h
        self.len_w = len_w
        self.dtype = torch.bfloat16 if angles == "bfloat16" else torch.float64
        # Only the name matters (checkpoints have it): positions are counted anew in forward, since a cast of the module
        # would round this copy.
        self.register_buffer("seq", torch.arange(max(len_h, len_w, len_t), dtype=torch.float32))
        dim_space = head_channels // 6 * 2
        dim_time = head_channels - 2 * dim_space
        # On the CPU also under a meta device context: powers in bfloat16 may round differently elsewhere.
        self.frequencies = {
            torch.device("cpu"): (
                self._frequencies(dim_time, ratio_t),
                self._frequencies(dim_space, ratio_h),
                self._frequencies(dim_space, ratio_w),
            )
        }

    def _frequencies(self, dim: int, ratio: float) -> Tensor:
        theta = BASE * ratio ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
        return 1.0 / theta ** exponents.to(torch.float32).to(self.dtype)

    def forward(self, grid: tuple[int, int, int], fps: Tensor | None, num_views: int, device: torch.device) -> Tensor:
        """Return the angles [L, B or 1, 1, d], float32; time restarts in each view.

        Args:
            grid: patches along time (all views together), height and width.
            fps: frames a second of each sample [B]; None only for a single frame.
            num_views: views stacked along time.
            device: where the angles are needed.

        Raises:
            WorldtuneError: the grid is larger than the tables, or a video came without fps.
        """
        t, h, w = grid[0] // num_views, grid[1], grid[2]
        if h > self.len_h or w > self.len_w:
            raise WorldtuneError(
                f"A grid of {h} x {w} patches is larger than the network's {self.len_h} x {self.len_w} (max_img_h and "
                "max_img_w of its configuration over patch_spatial): choose a smaller data.resolution."
            )
        if fps is None and t > 1:
            raise WorldtuneError("A video needs fps: the temporal rotary angles depend on it.")
        if device not in self.frequencies:
            cpu = self.frequencies[torch.device("cpu")]
            self.frequencies[device] = (cpu[0].to(device), cpu[1].to(device), cpu[2].to(device))
        frequencies_t, frequencies_h, frequencies_w = self.frequencies[device]
        positions = [torch.arange(n, device=device).to(self.dtype) for n in (t, h, w)]
        time = positions[0][:, None]
        if fps is not None:
            time = time / fps.to(device=device, dtype=self.dtype) * BASE_FPS
        batch = time.shape[1]
        by_t = (time[:, :, None] * frequencies_t)[:, None, None].expand(t, h, w, batch, -1)
        by_h = torch.outer(positions[1], frequencies_h)[None, :, None, None].expand(t, h, w, batch, -1)
        by_w = torch.outer(positions[2], frequencies_w)[None, None, :, None].expand(t, h, w, batch, -1)
        half = torch.cat((by_t, by_h, by_w), dim=-1).to(torch.float32).reshape(t * h * w, batch, 1, -1)
        return torch.cat((half, half), dim=-1).repeat(num_views, 1, 1, 1)


def rotation(angles: Tensor) -> Rotation:
    """Return the rotation by `angles` [L, B or 1, 1, d]."""
    return Rotation(angles.cos(), angles.sin())
