"""The tokenizer wrapper: chunks, normalisation, causality, and named errors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.demo.codec import Decoder, Encoder
from worldtune.transfer1.tokenizer import VideoTokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.jit.save(torch.jit.script(Encoder()), folder / "encoder.jit")
    torch.jit.save(torch.jit.script(Decoder()), folder / "decoder.jit")
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(16, 5, generator=generator)
    torch.save((mean, 1 + torch.rand(16, 5, generator=generator)), folder / "mean_std.pt")
    return folder


def video(frames: int, *, batch: int = 1, height: int = 32, width: int = 48) -> Tensor:
    """Return a smooth moving pattern from -1 to 1."""
    t, y, x = (torch.linspace(0, 1, size) for size in (frames, height, width))
    # Nearly grey, since the demo transform keeps little of the colours.
    phases = 0.1 * torch.arange(batch * 3).view(batch, 3, 1, 1, 1)
    wave = torch.sin(3 * x + 2 * y[:, None] + 1.5 * t[:, None, None] + phases)
    return 0.9 * wave


def test_encode_normalises_and_decode_undoes_it(folder: Path) -> None:
    tokenizer = VideoTokenizer(folder, 17, CPU, torch.float32)
    pixels = video(17, batch=2)
    latents = tokenizer.encode(pixels)
    assert latents.shape == (2, 16, 3, 4, 6)
    mean, std = (value[None, :, :3, None, None] for value in torch.load(folder / "mean_std.pt", weights_only=True))
    (raw,) = Encoder()(pixels)
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(tokenizer.decode(latents), Decoder()(raw), atol=1e-4, rtol=1e-4)
    assert (tokenizer.decode(latents) - pixels).abs().mean() < 0.025


def test_chunks_are_encoded_one_by_one(folder: Path) -> None:
    tokenizer = VideoTokenizer(folder, 9, CPU, torch.float32)
    pixels = video(9 * 10, batch=2)
    latents = tokenizer.encode(pixels)
    assert latents.shape == (2, 16, 20, 4, 6)
    torch.testing.assert_close(latents[:, :, 6:8], tokenizer.encode(pixels[:, :, 27:36]))
    frames = tokenizer.decode(latents)
    assert frames.shape == pixels.shape
    torch.testing.assert_close(frames[:, :, 27:36], tokenizer.decode(latents[:, :, 6:8]))


def test_the_first_latent_frame_knows_the_first_frame_alone(folder: Path) -> None:
    tokenizer = VideoTokenizer(folder, 17, CPU, torch.float32)
    pixels = video(17)
    other = torch.cat([pixels[:, :, :9], -pixels[:, :, 9:]], dim=2)
    one, two = tokenizer.encode(pixels), tokenizer.encode(other)
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert not torch.equal(one[:, :, 2], two[:, :, 2])
    changed = pixels.clone()
    changed[:, :, 1:] = 0
    assert torch.equal(tokenizer.encode(changed)[:, :, 0], one[:, :, 0])


def test_bfloat16_stays_near_float32(folder: Path) -> None:
    pixels = video(17)
    exact = VideoTokenizer(folder, 17, CPU, torch.float32)
    rough = VideoTokenizer(folder, 17, CPU, torch.bfloat16)
    latents = rough.encode(pixels)
    assert latents.dtype == torch.bfloat16
    assert (latents.float() - exact.encode(pixels)).abs().max() < 0.15
    frames = rough.decode(latents)
    assert frames.dtype == torch.bfloat16
    assert (frames.float() - pixels).abs().mean() < 0.04


@pytest.mark.parametrize(("frames", "message"), [(16, "nearest are 9 and 17"), (120, "113 and 121"), (0, "8k")])
def test_other_numbers_of_frames_are_refused(folder: Path, frames: int, message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        VideoTokenizer(folder, frames, CPU, torch.float32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 9, 32, 48), "chunks of 17 frames"),
        ((1, 3, 0, 32, 48), "chunks of 17 frames"),
        ((1, 1, 17, 32, 48), "expected \\[B, 3"),
        ((1, 3, 17, 30, 48), "48x30 pixels"),
    ],
)
def test_other_videos_are_refused(folder: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        VideoTokenizer(folder, 17, CPU, torch.float32).encode(torch.zeros(shape))


@pytest.mark.parametrize(("shape", "message"), [((1, 16, 2, 4, 6), "chunks of 3"), ((1, 8, 3, 4, 6), "\\[B, 16")])
def test_other_latents_are_refused(folder: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        VideoTokenizer(folder, 17, CPU, torch.float32).decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((torch.zeros(16, 2), torch.ones(16, 2)), "needs 16 channels x 3"),
        ((torch.zeros(15, 3), torch.ones(15, 3)), "has 45 values"),
        ((torch.zeros(16, 3), torch.zeros(16, 3)), "std has values"),
        (torch.zeros(16, 3), "no pair"),
    ],
)
def test_other_statistics_are_refused(folder: Path, tmp_path: Path, content: object, message: str) -> None:
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).symlink_to(folder / name)
    torch.save(content, tmp_path / "mean_std.pt")
    with pytest.raises(WorldtuneError, match=message):
        VideoTokenizer(tmp_path, 17, CPU, torch.float32)


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"encoder\.jit does not exist"):
        VideoTokenizer(tmp_path, 17, CPU, torch.float32)
    (tmp_path / "encoder.jit").write_bytes(b"no module")
    with pytest.raises(WorldtuneError, match="no TorchScript module"):
        VideoTokenizer(tmp_path, 17, CPU, torch.float32)
    for name in ("encoder.jit", "decoder.jit"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(folder / name)
    whole = (folder / "mean_std.pt").read_bytes()
    for content in (b"no statistics", whole[: len(whole) // 2], b""):
        (tmp_path / "mean_std.pt").write_bytes(content)
        with pytest.raises(WorldtuneError, match=r"(?s)mean_std\.pt .*Fetch it again"):
            VideoTokenizer(tmp_path, 17, CPU, torch.float32)
