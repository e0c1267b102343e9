"""The frozen video tokenizer: pixels to normalised latents and back, in chunks of one fixed number of frames."""

from pathlib import Path

import torch
from torch import Tensor

from worldtune.checkpoint.reading import load_pickled
from worldtune.common.errors import WorldtuneError
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_FRAMES, LATENT_PIXELS

CHUNKS_A_CALL = {"encoder": 8, "decoder": 4}
"""Chunks that go through the TorchScript module at once, which bounds its memory."""


class VideoTokenizer:
    """Encoder and decoder of a tokenizer folder (encoder.jit, decoder.jit, mean_std.pt), on one device.

    A chunk of 8k + 1 frames becomes k + 1 latent frames, the first of which stands for the first frame alone. Latents
    are normalised by a mean and a standard deviation of each channel and latent frame. The scaling by sigma_data is the
    objective's.
    """

    def __init__(self, folder: Path, num_frames: int, device: torch.device, dtype: torch.dtype) -> None:
        """Load the tokenizer.

        Args:
            folder: the tokenizer's folder.
            num_frames: frames of a chunk, 8k + 1.
            device: where to run.
            dtype: type of weights, pixels and latents; released tokenizers run in bfloat16.

        Raises:
            WorldtuneError: num_frames has another form, a file is missing or damaged, or mean_std.pt does not fit.
        """
        if num_frames < 1 or num_frames % LATENT_FRAMES != 1:
            below = max(1, (num_frames - 1) // LATENT_FRAMES * LATENT_FRAMES + 1)
            raise WorldtuneError(
                f"data.num_frames is {num_frames}; the tokenizer needs 8k + 1, the nearest are {below} and "
                f"{below + LATENT_FRAMES}."
            )
        self.folder = Path(folder)
        self.num_frames = num_frames
        self.num_latent_frames = (num_frames - 1) // LATENT_FRAMES + 1
        self.device = device
        self.dtype = dtype
        self._encoder = self._load("encoder")
        self._decoder = self._load("decoder")
        self._mean, self._std = self._load_statistics()

    def encode_frames(self, video: Tensor, kept_b: Tensor | None = None) -> Tensor:
        """Return the normalised latents of uint8 frames [B, 3, n * num_frames, H, W]; see `encode`.

        Args:
            video: the frames.
            kept_b: 0 for a sample whose pixels are all replaced by mid-grey (0 of -1 to 1), else 1; [B].
        """
        pixels = video.to(self.device, self.dtype) / 127.5 - 1
        if kept_b is not None:
            pixels = pixels * kept_b.to(pixels)[:, None, None, None, None]
        return self.encode(pixels)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Return the normalised latents of a video.

        Args:
            video: pixels from -1 to 1, [B, 3, n * num_frames, H, W] with H and W multiples of 8.

        Returns:
            Latents [B, 16, n * num_latent_frames, H / 8, W / 8] of about unit variance, in the tokenizer's dtype.

        Raises:
            WorldtuneError: the shape is another one.
        """
        if video.dim() != 5 or video.shape[1] != 3:
            raise WorldtuneError(f"a video of shape {list(video.shape)} cannot be encoded; expected [B, 3, T, H, W].")
        batch, _, frames, height, width = video.shape
        self._check_frames(frames, self.num_frames, "frames")
        if height % LATENT_PIXELS or width % LATENT_PIXELS:
            raise WorldtuneError(
                f"a video of {width}x{height} pixels cannot be encoded; width and height must be multiples of "
                f"{LATENT_PIXELS}. Fit it to a size of the table first (data.resolution)."
            )
        chunks = _cut(video.to(self.device, self.dtype), self.num_frames)
        latents = self._run("encoder", chunks)
        expected = [self.num_latent_frames, height // LATENT_PIXELS, width // LATENT_PIXELS]
        if list(latents.shape[1:]) != [LATENT_CHANNELS, *expected]:
            raise WorldtuneError(
                f"{self.folder / 'encoder.jit'} gave latents of shape {list(latents.shape[1:])}, expected "
                f"{[LATENT_CHANNELS, *expected]}: this is no 8x8x8 tokenizer with {LATENT_CHANNELS} channels."
            )
        return _join((latents - self._mean) / self._std, batch)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the video of normalised latents.

        Args:
            latents: [B, 16, n * num_latent_frames, h, w].

        Returns:
            Pixels [B, 3, n * num_frames, 8h, 8w] of about -1 to 1 (not clipped), in the tokenizer's dtype.

        Raises:
            WorldtuneError: the shape is another one.
        """
        if latents.dim() != 5 or latents.shape[1] != LATENT_CHANNELS:
            raise WorldtuneError(
                f"latents of shape {list(latents.shape)} cannot be decoded; expected [B, {LATENT_CHANNELS}, T, H, W]."
            )
        self._check_frames(latents.shape[2], self.num_latent_frames, "latent frames")
        chunks = _cut(latents.to(self.device, self.dtype), self.num_latent_frames)
        frames = self._run("decoder", chunks * self._std + self._mean)
        if frames.shape[1:3] != (3, self.num_frames):
            raise WorldtuneError(
                f"{self.folder / 'decoder.jit'} gave {list(frames.shape)}, expected 3 channels and {self.num_frames} "
                f"frames for {self.num_latent_frames} latent frames."
            )
        return _join(frames, latents.shape[0])

    def _check_frames(self, found: int, chunk: int, what: str) -> None:
        if found == 0 or found % chunk:
            raise WorldtuneError(
                f"{found} {what} were given to the tokenizer of {self.folder}; it was loaded for chunks of {chunk} "
                f"{what} (data.num_frames = {self.num_frames}). Give a whole number of chunks."
            )

    def _run(self, name: str, chunks: Tensor) -> Tensor:
        """Put chunks [N, ...] through a module, a few at a time."""
        module = self._encoder if name == "encoder" else self._decoder
        outputs = []
        for part in chunks.split(CHUNKS_A_CALL[name]):
            output = module(part)
            outputs.append((output[0] if isinstance(output, tuple) else output).to(self.dtype))
        return torch.cat(outputs)

    def _load(self, name: str) -> torch.jit.ScriptModule:
        path = self._file(f"{name}.jit")
        try:
            module = torch.jit.load(str(path), map_location=self.device)
        except RuntimeError as error:
            raise WorldtuneError(f"{path} is no TorchScript module ({error}). Fetch or make it again.") from error
        return module.to(self.dtype).eval()

    def _load_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each [1, 16, latent frames of a chunk, 1, 1]."""
        path = self._file("mean_std.pt")
        pair = load_pickled(path)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(item, Tensor) for item in pair):
            raise WorldtuneError(f"{path} holds no pair of tensors (mean, std). Fetch or make it again.")
        statistics = []
        for name, values in zip(("mean", "std"), pair, strict=True):
            if values.numel() % LATENT_CHANNELS or values.numel() // LATENT_CHANNELS < self.num_latent_frames:
                raise WorldtuneError(
                    f"{path}: {name} has {values.numel()} values; a chunk of {self.num_frames} frames needs "
                    f"{LATENT_CHANNELS} channels x {self.num_latent_frames} or more latent frames. Lower "
                    "data.num_frames or take another tokenizer."
                )
            table = values.reshape(LATENT_CHANNELS, -1)[:, : self.num_latent_frames]
            if not torch.isfinite(table).all() or (name == "std" and table.min() <= 0):
                raise WorldtuneError(f"{path}: {name} has values that are not finite and positive. Fetch it again.")
            statistics.append(table.to(self.device, self.dtype)[None, :, :, None, None])
        return statistics[0], statistics[1]

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise WorldtuneError(
                f"{path} does not exist. A tokenizer folder holds encoder.jit, decoder.jit and mean_std.pt; run the "
                "rule that fetches or makes the checkpoints."
            )
        return path


def _cut(x: Tensor, chunk: int) -> Tensor:
    """Return chunks along time as a batch: [B, C, n * chunk, H, W] to [B * n, C, chunk, H, W]."""
    return x.unflatten(2, (-1, chunk)).transpose(1, 2).flatten(0, 1)


def _join(x: Tensor, batch: int) -> Tensor:
    """Undo `_cut`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
