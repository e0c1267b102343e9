"""What comes into the token stream: patches, absolute positions, the noise level.

Shapes: B batch, C channels, T H W latent frames, height and width, t h w the same in patches, L = t*h*w tokens, D
width.
"""

import math

import torch
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.tokens import SINGLE, TokenParallel, local
from worldtune.transfer1.layers import Linear, TokenLinear

ABSOLUTE_EPS = 1e-6
"""Added to the root mean square of an absolute position embedding (outside of the root)."""
LONGEST_PERIOD = 10000.0
"""Longest period over 2 pi of the sinusoids."""


class Patchify(nn.Module):
    """Cut a latent video into flattened patches; the column is the fastest index and the channel the slowest."""

    def __init__(self, patch_spatial: int, patch_temporal: int) -> None:
        """Make a cutter for patches of patch_temporal x patch_spatial x patch_spatial."""
        super().__init__()
        self.patch_spatial = patch_spatial
        self.patch_temporal = patch_temporal

    def forward(self, x: Tensor) -> Tensor:
        """Return the patches of `x` [B, C, T, H, W] as [L, B, C * patch volume]."""
        r, m = self.patch_temporal, self.patch_spatial
        x = x.unflatten(4, (-1, m)).unflatten(3, (-1, m)).unflatten(2, (-1, r))
        # B C t r h m w n -> t h w B C r m n
        x = x.permute(2, 4, 6, 0, 1, 3, 5, 7)
        return x.flatten(4).flatten(0, 2)


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    parallel: TokenParallel = SINGLE

    def __init__(self, channels: int, width: int, *, patch_spatial: int, patch_temporal: int) -> None:
        """Make the embedding of `channels` channels into `width` channels of the token stream."""
        super().__init__()
        self.proj = nn.Sequential(
            Patchify(patch_spatial, patch_temporal),
            TokenLinear(channels * patch_spatial**2 * patch_temporal, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return this rank's tokens [L, B, D] of `x` [B, C, T, H, W]."""
        return self.proj[1](self.parallel.scatter(self.proj[0](x)))


def unpatchify(x: Tensor, grid: tuple[int, int, int], *, patch_spatial: int, patch_temporal: int) -> Tensor:
    """Return [B, C, T, H, W] from the outputs [L, B, patch volume * C] of the final layer.

    The channel is the fastest index here, and the row offset the slowest.
    """
    x = x.unflatten(2, (patch_spatial, patch_spatial, patch_temporal, -1)).unflatten(0, grid)
    # t h w B p1 p2 r C -> B C t r h p1 w p2
    x = x.permute(3, 7, 0, 6, 1, 4, 2, 5)
    t, h, w = grid
    # One reshape, which is no view: FSDP2 wants to hook the output.
    return x.reshape(x.shape[0], x.shape[1], t * patch_temporal, h * patch_spatial, w * patch_spatial)


class LearnedPositions(nn.Module):
    """The sum of a learned vector for each of the three axes, scaled to unit root mean square."""

    parallel: TokenParallel = SINGLE

    def __init__(self, width: int, *, len_t: int, len_h: int, len_w: int) -> None:
        """Make tables for grids of up to len_t x len_h x len_w patches."""
        super().__init__()
        self.pos_emb_h = nn.Parameter(torch.zeros(len_h, width))
        self.pos_emb_w = nn.Parameter(torch.zeros(len_w, width))
        self.pos_emb_t = nn.Parameter(torch.zeros(len_t, width))

    def forward(self, grid: tuple[int, int, int], num_views: int) -> Tensor:
        """Return this rank's [L, 1, D]; time restarts in each view.

        Raises:
            WorldtuneError: the grid is larger than the tables.
        """
        t, h, w = grid[0] // num_views, grid[1], grid[2]
        if t > len(self.pos_emb_t) or h > len(self.pos_emb_h) or w > len(self.pos_emb_w):
            tables = f"{len(self.pos_emb_t)} x {len(self.pos_emb_h)} x {len(self.pos_emb_w)}"
            raise WorldtuneError(
                f"A grid of {t} x {h} x {w} patches is larger than the network's position tables of {tables}: lower "
                "data.num_frames or data.resolution."
            )
        by_t, by_h, by_w = (
            self.parallel.sum_gradient_over_tokens(local(table))
            for table in (self.pos_emb_t, self.pos_emb_h, self.pos_emb_w)
        )
        full = by_t[:t, None, None] + by_h[None, :h, None] + by_w[None, None, :w]
        positions = self.parallel.own_chunk(full.flatten(0, 2).repeat(num_views, 1))
        return normalised(positions)[:, None]


def normalised(x: Tensor) -> Tensor:
    """Divide `x` [..., D] by its root mean square over the channels, which is taken in float32 or better."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (ABSOLUTE_EPS + norm * math.sqrt(1.0 / x.shape[-1])).to(x.dtype)


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines of the position on each axis, not normalised; multi-view networks have it."""

    parallel: TokenParallel = SINGLE

    def __init__(self, width: int) -> None:
        """Make positions of `width` channels."""
        super().__init__()
        self.width = width

    def forward(self, grid: tuple[int, int, int], num_views: int, like: Tensor) -> Tensor:
        """Return this rank's [L, 1, D] with the dtype and device of `like`; time restarts in each view."""
        t, h, w = grid[0] // num_views, grid[1], grid[2]
        dim_space = self.width // 6 * 2
        dim_time = self.width - 2 * dim_space
        by_t = _sines_then_cosines(t, dim_time, like.device)[:, None, None].expand(t, h, w, -1)
        by_h = _sines_then_cosines(h, dim_space, like.device)[None, :, None].expand(t, h, w, -1)
        by_w = _sines_then_cosines(w, dim_space, like.device)[None, None, :].expand(t, h, w, -1)
        full = torch.cat((by_t, by_h, by_w), dim=-1).to(like.dtype).flatten(0, 2).repeat(num_views, 1)
        return self.parallel.own_chunk(full)[:, None]


def _sines_then_cosines(length: int, dim: int, device: torch.device) -> Tensor:
    half = dim // 2
    frequencies = LONGEST_PERIOD ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Timesteps(nn.Module):
    """Sinusoids of the noise level."""

    def __init__(self, width: int) -> None:
        """Make `width` channels: cosines, then sines."""
        super().__init__()
        self.width = width

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return [B, D] for `timesteps` [B], computed in float32 or better, in the dtype of `timesteps`."""
        half = self.width // 2
        dtype = torch.promote_types(timesteps.dtype, torch.float32)
        index = torch.arange(half, dtype=dtype, device=timesteps.device)
        frequencies = torch.exp(-math.log(LONGEST_PERIOD) * index / half)
        angles = timesteps[:, None].to(dtype) * frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1).to(timesteps.dtype)


class TimestepMLP(nn.Module):
    """From the sinusoids to what all adaptive layer norms share."""

    def __init__(self, width: int) -> None:
        """Make the map from D to 3D channels."""
        super().__init__()
        self.linear_1 = Linear(width, width, bias=False)
        self.linear_2 = Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D] to [B, 3D]."""
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


class ViewEmbedding(nn.Embedding):
    """A vector for each camera."""

    def forward(self, indices: Tensor) -> Tensor:
        """Return [..., channels] for whole-numbered `indices` of any dtype; too large ones take the last row."""
        return nn.functional.embedding(indices.long().clamp(max=self.num_embeddings - 1), local(self.weight))
