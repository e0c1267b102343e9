"""Depth of each frame by Depth-Anything-V2 (spec/transfer1-training.md 6.6).

T frames, H and W height and width of a clip, h and w of what the network takes and gives.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation

from worldtune.annotate.depth_files import depth_writer
from worldtune.annotate.pretrained import load_network, reading
from worldtune.annotate.protocol import ClipToAnnotate, choose_device
from worldtune.common.errors import WorldtuneError
from worldtune.media.video import iterate_frames

VERSION = 3

NETWORK = "a Depth-Anything network"
FRAMES_PER_BATCH = 8
"""Frames that are in memory, and go through the network, at once."""
BICUBIC = 3
"""How PIL numbers its ways of resizing."""


class DepthNetwork:
    """A Depth-Anything network from a local folder: float16 on a GPU, float32 on the CPU."""

    def __init__(
        self, folder: Path, device: str, *, bounds: tuple[float, float] | None = None, lossless: bool = False
    ) -> None:
        """Load it from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.
            bounds: the network's depths that are black and white; None takes each clip's smallest and largest.
            lossless: whether each clip gets a file of 16 bits too.

        Raises:
            WorldtuneError: the folder holds no such network (see pretrained.load_network), or prepares its pictures in
                another way than Depth-Anything's.
        """
        self.bounds, self.lossless = bounds, lossless
        self.device = torch.device(choose_device(device))
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model = load_network(DepthAnythingForDepthEstimation, folder, NETWORK, dtype=dtype).to(self.device)
        if self.model.config.depth_estimation_type != "relative":
            raise WorldtuneError(
                f"{folder}/config.json has depth_estimation_type {self.model.config.depth_estimation_type!r}, of which "
                "near is the smallest number; expected 'relative'. Name a network without Metric in its name."
            )
        with reading(folder, NETWORK):
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        steps = {name: getattr(self.processor, name, None) for name in ("do_resize", "do_rescale", "do_normalize")}
        if not all(steps.values()) or self.processor.do_pad or int(self.processor.resample) != BICUBIC:
            raise WorldtuneError(
                f"{folder}/preprocessor_config.json has {steps}, do_pad {self.processor.do_pad}, resample "
                f"{self.processor.resample}; expected the bicubic resizing and normalising of Depth-Anything-V2."
            )

    def prepare(self, frames: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Return what the network takes, [T, 3, h, w] in its type on its device, as its image processor would.

        The processor resizes each frame on the CPU: rows, then columns, in whole levels of colour after each. This does
        the same to all frames on the device. At least 98 values in 100 are equal, 999 in 1,000 where frames are made
        smaller, and the others differ by 1 level of 255, at most by 2.

        Args:
            frames: uint8 [T, H, W, 3].
            size: h and w, from `input_size`.
        """
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2).float()
        for step in ((frames.shape[1], size[1]), size):
            pixels = functional.interpolate(pixels, step, mode="bicubic", antialias=True, align_corners=False)
            pixels = pixels.round().clamp(0, 255)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return ((pixels * self.processor.rescale_factor - mean) / std).to(self.model.dtype)

    def input_size(self, frame: np.ndarray) -> tuple[int, int]:
        """Return h and w that the image processor gives a frame (uint8 [H, W, 3])."""
        height, width = self.processor(images=frame, return_tensors="pt")["pixel_values"].shape[-2:]
        return int(height), int(width)

    @torch.inference_mode()
    def predictions(self, frames: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield the network's depth of batches of frames (uint8 [H, W, 3] each), [T, h, w] in its type, nearer larger.

        Each frame is taken once, and no more than a batch of them is kept.
        """
        size = None
        while batch := list(itertools.islice(frames, FRAMES_PER_BATCH)):
            size = size or self.input_size(batch[0])
            yield self.model(pixel_values=self.prepare(np.stack(batch), size)).predicted_depth

    def annotate(self, clip: ClipToAnnotate, target: Path) -> None:
        """Write depth as grey, near bright, on one scale; see protocol.ClipAnnotator and depth_files.depth_writer.

        Where the scale is the clip's own, the network's predictions wait in a file without a name, so that memory does
        not grow with the clip, no frame is decoded twice, and a killed process leaves nothing.
        """
        size = (clip.height, clip.width)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as spool:
            windows = self.predictions(iterate_frames(clip.video))
            bounds = self.bounds
            if bounds is None:
                bounds, shapes = _keep(windows, spool, size)
                windows = _kept(spool, shapes, self.model.dtype, self.device)
            with depth_writer(target, clip.fps, bounds, lossless=self.lossless) as append:
                for window in windows:
                    append(full_size(window, size).cpu().numpy())


def full_size(predicted: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return predictions [T, h, w] as float32 [T, H, W] of another size, bicubic.

    Raises:
        WorldtuneError: some are not finite.
    """
    depth = functional.interpolate(predicted[:, None].float(), size, mode="bicubic", align_corners=False)[:, 0]
    if not torch.stack(torch.aminmax(depth)).isfinite().all():
        raise WorldtuneError("the network gave depths that are not finite")
    return depth


def _keep(
    windows: Iterator[torch.Tensor], spool: IO[bytes], size: tuple[int, int]
) -> tuple[tuple[float, float], list[torch.Size]]:
    """Write predictions to a file; return their smallest and largest depth at full size, and the windows' shapes."""
    low, high = float("inf"), float("-inf")
    shapes = []
    for window in windows:
        depth = full_size(window, size)
        low, high = min(low, float(depth.min())), max(high, float(depth.max()))
        shapes.append(window.shape)
        spool.write(window.cpu().numpy().tobytes())
    spool.seek(0)
    return (low, high), shapes


def _kept(
    spool: IO[bytes], shapes: list[torch.Size], dtype: torch.dtype, device: torch.device
) -> Iterator[torch.Tensor]:
    for shape in shapes:
        content = bytearray(spool.read(shape.numel() * dtype.itemsize))
        yield torch.frombuffer(content, dtype=dtype).reshape(shape).to(device)
