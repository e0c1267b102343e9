"""Depth of each frame by Depth-Anything-V2 (spec/transfer1-training.md 6.6). T frames, H height, W width."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from worldtune.annotate.protocol import ClipToAnnotate, choose_device
from worldtune.common.errors import WorldtuneError
from worldtune.media.video import iterate_frames, video_writer

VERSION = 1


class DepthNetwork:
    """A Depth-Anything network from a local folder: float16 on a GPU, float32 on the CPU."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load it from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.

        Raises:
            WorldtuneError: the folder holds no such network, or lacks some of its weights.
        """
        self.device = torch.device(choose_device(device))
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.model, report = AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WorldtuneError(f"{folder} cannot be loaded as a depth network: {error}. Fetch it again.") from error
        missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if missing:
            raise WorldtuneError(f"{folder} lacks weights of the depth network: {', '.join(missing[:5])}.")
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def inverse_depth(self, frames: np.ndarray) -> np.ndarray:
        """Return float32 [T, H, W], larger where nearer, of frames uint8 [T, H, W, 3]."""
        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.device, self.model.dtype)
        predicted = self.model(**inputs).predicted_depth[:, None].float()
        resized = functional.interpolate(predicted, frames.shape[1:3], mode="bicubic", align_corners=False)
        depth: np.ndarray = resized[:, 0].cpu().numpy()
        return depth

    def annotate(self, clip: ClipToAnnotate, target: Path) -> int:
        """Write depth as 8-bit grey, near bright, one scale for the whole clip; see protocol.ClipAnnotator."""
        depth = np.concatenate([self.inverse_depth(frame[None]) for frame in iterate_frames(clip.video)])
        low, high = float(depth.min()), float(depth.max())
        if not np.isfinite((low, high)).all():
            raise WorldtuneError("the network gave depths that are not finite")
        scaled = (depth - low) / (high - low or 1.0) * 255
        with video_writer(target, clip.fps) as append:
            for frame in np.round(scaled).astype(np.uint8):
                append(np.repeat(frame[None, ..., None], 3, axis=3))
        return len(depth)
