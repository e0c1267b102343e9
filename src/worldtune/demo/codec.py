"""The demo's video tokenizer: a fixed orthonormal transform with the interface of the released TorchScript tokenizer.

Every frame is filtered across the borders of its 8x8 blocks (which keeps the coarse picture free of block edges), then
blocks of 8x8 pixels and groups of 8 frames are transformed by a cosine transform, and 16 of the 1536 coefficients are
kept. The first frame stands alone, so that it takes finer spatial coefficients in the place of temporal ones. Encoding
is causal: a latent frame depends on its own frames alone.

A Hadamard matrix turns the coefficients into channels of equal shares. Normalising coefficients one by one would make
rare fine detail as important as the coarse picture, and leave a small denoiser little to learn.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 8

STILL = ((0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 2, 0))
"""Coefficients (colour, row frequency, column frequency) of both kinds of latent frame; colour 0 is brightness."""
FINE = ((0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 0, 3), (0, 3, 0), (2, 1, 0), (2, 0, 1), (0, 2, 1), (1, 2, 0))
"""What the first latent frame keeps beside."""
MOVING = (
    (1, 0, 0, 0),
    (1, 1, 0, 0),
    (1, 2, 0, 0),
    (1, 0, 0, 1),
    (1, 0, 1, 0),
    (2, 0, 0, 0),
    (2, 0, 0, 1),
    (3, 0, 0, 0),
    (3, 0, 0, 1),
)
"""What the others keep beside: (time frequency, colour, row frequency, column frequency).

These and the above are the 16 of the largest mean square on rendered scenes.
"""


def cosine_transform(size: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), float64 [frequency, sample]."""
    frequency, sample = torch.arange(size).double()[:, None], torch.arange(size).double()[None]
    rows = torch.cos(math.pi * (sample + 0.5) * frequency / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def hadamard(size: int) -> Tensor:
    """Return the orthonormal Hadamard matrix of a power of two, float64 [size, size]."""
    matrix = torch.ones(1, 1).double()
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def border_filter() -> Tensor:
    """Return the orthonormal filter across a block border, float64 [8, 8]: four samples of either side.

    It is the time-domain form of the lapped orthogonal transform: sums of mirrored samples pass, and their differences
    are turned by a DCT-IV and a DCT-II.
    """
    half = BLOCK // 2
    identity, mirror = torch.eye(half).double(), torch.eye(half).double().flip(0)
    butterfly = torch.cat([torch.cat([identity, mirror], 1), torch.cat([mirror, -identity], 1)]) / math.sqrt(2)
    frequency, sample = torch.arange(half).double()[:, None], torch.arange(half).double()[None]
    fourth = torch.cos(math.pi * (sample + 0.5) * (frequency + 0.5) / half) * math.sqrt(2 / half)
    turn = mirror @ cosine_transform(half).T @ fourth @ mirror
    return butterfly @ torch.block_diag(identity, turn) @ butterfly


def bases() -> tuple[Tensor, Tensor]:
    """Return the kept basis functions of first frames (float64 [16, 3, 1, 8, 8]) and of groups ([16, 3, 8, 8, 8])."""
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]]).double()
    colours /= colours.norm(dim=1, keepdim=True)
    waves = cosine_transform(BLOCK)

    def function(time: Tensor, colour: int, row: int, column: int) -> Tensor:
        return torch.einsum("c,t,h,w->cthw", colours[colour], time, waves[row], waves[column])

    alone = torch.ones(1).double()
    first = torch.stack([function(alone, *index) for index in (*STILL, *FINE)])
    groups = [(0, *index) for index in STILL] + list(MOVING)
    group = torch.stack([function(waves[time], *index) for time, *index in groups])
    return torch.tensordot(hadamard(len(first)), first, 1), torch.tensordot(hadamard(len(group)), group, 1)


def across_borders(x: Tensor, weight: Tensor) -> Tensor:
    """Filter [..., W] across the inner borders of the last axis's blocks."""
    half = weight.shape[0] // 2
    inner = x[..., half:-half].unflatten(-1, (-1, 2 * half)) @ weight.t()
    return torch.cat([x[..., :half], inner.flatten(-2), x[..., -half:]], dim=-1)


class Encoder(nn.Module):
    """Pixels [B, 3, 8k + 1, 8h, 8w] to latents [B, 16, k + 1, h, w], as a tuple of one."""

    border: Tensor
    first: Tensor
    group: Tensor

    def __init__(self) -> None:
        """Make the transform."""
        super().__init__()
        first, group = bases()
        self.register_buffer("border", border_filter().float())
        self.register_buffer("first", first.float())
        self.register_buffer("group", group.float())

    def forward(self, video: Tensor) -> tuple[Tensor]:
        """Encode a video; computed in float32, given back in the video's dtype."""
        x = video.float()
        x = across_borders(x, self.border.float())
        x = across_borders(x.transpose(-1, -2), self.border.float()).transpose(-1, -2)
        latents = F.conv3d(x[:, :, :1], self.first.float(), stride=[1, 8, 8])
        if x.shape[2] > 1:
            rest = F.conv3d(x[:, :, 1:], self.group.float(), stride=[8, 8, 8])
            latents = torch.cat([latents, rest], dim=2)
        return (latents.to(video.dtype),)


class Decoder(nn.Module):
    """Latents [B, 16, k + 1, h, w] to pixels [B, 3, 8k + 1, 8h, 8w]."""

    border: Tensor
    first: Tensor
    group: Tensor

    def __init__(self) -> None:
        """Make the inverse transform."""
        super().__init__()
        first, group = bases()
        self.register_buffer("border", border_filter().T.contiguous().float())
        self.register_buffer("first", first.float())
        self.register_buffer("group", group.float())

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents; computed in float32, given back in their dtype."""
        z = latents.float()
        x = F.conv_transpose3d(z[:, :, :1], self.first.float(), stride=[1, 8, 8])
        if z.shape[2] > 1:
            x = torch.cat([x, F.conv_transpose3d(z[:, :, 1:], self.group.float(), stride=[8, 8, 8])], dim=2)
        x = across_borders(x.transpose(-1, -2), self.border.float()).transpose(-1, -2)
        x = across_borders(x, self.border.float())
        return x.to(latents.dtype)
