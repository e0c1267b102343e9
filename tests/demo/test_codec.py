"""The demo's tokenizer transform: orthonormal, causal, and good enough to recognise a scene."""

import pytest
import torch

from worldtune.demo.codec import Decoder, Encoder, across_borders, bases, border_filter, cosine_transform, hadamard
from worldtune.demo.scenes import render_scene


def scene(name: str) -> torch.Tensor:
    """Return pixels [1, 3, 17, 96, 160], -1 to 1."""
    frames = render_scene(name, seed=0, num_frames=17, width=160, height=96, fps=24).frames
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@pytest.mark.parametrize("matrix", [cosine_transform(8), border_filter(), hadamard(16)])
def test_transforms_are_orthonormal(matrix: torch.Tensor) -> None:
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).double())


def test_basis_functions_are_orthonormal() -> None:
    for basis in bases():
        rows = basis.flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(16).double())


def test_encode_undoes_decode() -> None:
    """Latents are coordinates: what is decoded is encoded to the same latents."""
    latents = torch.randn(2, 16, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    (again,) = Encoder()(Decoder()(latents))
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)


def test_the_border_filter_leaves_the_picture_s_margin() -> None:
    row = torch.arange(24.0)[None]
    filtered = across_borders(row, border_filter().float())
    assert torch.equal(filtered[:, :4], row[:, :4])
    assert torch.equal(filtered[:, -4:], row[:, -4:])
    torch.testing.assert_close(across_borders(filtered, border_filter().T.float()), row)


def test_flat_colour_survives() -> None:
    pixels = torch.tensor([0.8, -0.3, 0.1]).view(1, 3, 1, 1, 1).expand(1, 3, 9, 16, 24)
    torch.testing.assert_close(Decoder()(Encoder()(pixels)[0]), pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "floor_db"), [("scene_0001", 23.0), ("scene_0002", 23.0)])
def test_scenes_are_recognisable(name: str, floor_db: float) -> None:
    pixels = scene(name)
    error = (Decoder()(Encoder()(pixels)[0]).clamp(-1, 1) - pixels) / 2
    assert -10 * torch.log10(error.square().mean()) > floor_db
    assert -10 * torch.log10(error[:, :, 0].square().mean()) > floor_db + 3


@pytest.mark.parametrize("frames", [1, 9, 17, 25])
def test_any_number_of_8k_plus_1_frames(frames: int) -> None:
    encoder, decoder = torch.jit.script(Encoder()), torch.jit.script(Decoder())
    (latents,) = encoder(torch.zeros(1, 3, frames, 16, 24))
    assert latents.shape == (1, 16, (frames - 1) // 8 + 1, 2, 3)
    assert decoder(latents).shape == (1, 3, frames, 16, 24)


def test_channels_have_equal_shares() -> None:
    """No channel is quiet beside the others: normalising blows up nothing."""
    latents = torch.cat([Encoder()(scene(name))[0] for name in ("scene_0001", "scene_0002", "scene_0005")])
    std = latents.transpose(0, 1).flatten(1).std(dim=1)
    assert std.min() > 0.4 * std.max()
