"""Samples of the Transfer1 family: a window of a clip, its control, its text, fitted to the recipe's size.

Video and control stay uint8 until they are on the device: they are what is broadcast over a tensor-parallel group.

A sample holds `clip_id` (str), `ordinal` (int64 [], -1 in evaluation), `video` and `hint` (uint8 [3, T, H, W]), `text`
(float32 [M, D]), `fps` (float32 []), `padding_mask` (float32 [1, H, W], 1 where the picture is padded) and `image_size`
(float32 [4]: height and width, then those without the padding).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.controls.edge import EDGE_RESOLUTION, canny, draw_thresholds
from worldtune.dataset.clips import Clip, Dataset
from worldtune.dataset.text import read_t5
from worldtune.media.geometry import fit, nearest_aspect_ratio
from worldtune.media.video import read_frames
from worldtune.recipe.schema import VIDEO_SIZES_WH, Recipe
from worldtune.training.held_out import measured_clips
from worldtune.training.order import clip_index
from worldtune.training.random import numpy_generator
from worldtune.training.task import Sample

logger = logging.getLogger(__name__)


class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Training samples by ordinal, and held-out ones by clip."""

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        """Take the clips that are long enough for the recipe.

        Raises:
            WorldtuneError: a split has none, the clips cannot be stacked as the recipe wants, the control is missing,
                or the text is of another width.
        """
        self.root = Path(dataset.root)
        self.recipe = recipe
        self.train_clips = long_enough(dataset.split("train"), recipe.data.num_frames, "train")
        self.held_out_clips = long_enough(dataset.split("held_out"), recipe.data.num_frames, "held_out")
        self.measured_clips = measured_clips(dataset, recipe)
        if not self.train_clips:
            raise WorldtuneError(
                f"Dataset {dataset.name} has no training clip of at least {recipe.data.num_frames} frames. "
                "Give longer clips or lower data.num_frames in the recipe."
            )
        # Found out at the end of a run otherwise, when its manifest is written.
        if not self.held_out_clips:
            raise WorldtuneError(
                f"Dataset {dataset.name} has no held-out clip of at least {recipe.data.num_frames} frames, on which "
                "the run would be measured. Raise the dataset's held_out_fraction in the configuration, give longer "
                "clips, or lower data.num_frames in the recipe."
            )
        check_stackable(self.train_clips, recipe)
        if recipe.control.kind not in dataset.controls:
            raise WorldtuneError(
                f"Dataset {dataset.name} has no {recipe.control.kind} controls, only {list(dataset.controls)}. Add "
                f"{recipe.control.kind!r} to its controls in the configuration and make them."
            )
        if dataset.text_channels != recipe.network.base.crossattn_emb_channels:
            raise WorldtuneError(
                f"Dataset {dataset.name} has text embeddings of {dataset.text_channels} channels, the network takes "
                f"{recipe.network.base.crossattn_emb_channels}. Set the dataset's text_encoder to the network's."
            )

    def __len__(self) -> int:
        """Number of training clips. Ordinals go on beyond it: each epoch has its own order."""
        return len(self.train_clips)

    def __getitem__(self, ordinal: int) -> Sample:
        """Return the training sample with this global number: a drawn window under a drawn control."""
        recipe = self.recipe
        seed = recipe.training.seed
        clip = self.train_clips[clip_index(seed, ordinal, len(self.train_clips))]
        assert clip.num_frames is not None
        last_start = clip.num_frames - recipe.data.num_frames
        start = int(numpy_generator(seed, "window", ordinal).integers(0, last_start + 1))
        frames = read_frames(clip.video_path(self.root), start, recipe.data.num_frames)
        low, high = draw_thresholds(recipe.control.edge, numpy_generator(seed, "control", ordinal))
        size_wh = VIDEO_SIZES_WH[EDGE_RESOLUTION][aspect_ratio(clip)]
        return self._assemble(clip, ordinal, frames, canny(frames, low, high, size_wh))

    def evaluation_sample(self, clip: Clip) -> Sample:
        """Return the first window of a clip under its fixed control map."""
        num_frames = self.recipe.data.num_frames
        frames = read_frames(clip.video_path(self.root), 0, num_frames)
        hint = read_frames(clip.control_path(self.root, self.recipe.control.kind), 0, num_frames)
        return self._assemble(clip, -1, frames, hint)

    def _assemble(self, clip: Clip, ordinal: int, frames_thwc: np.ndarray, hint_thwc: np.ndarray) -> Sample:
        size_wh = self.recipe.video_sizes_wh[aspect_ratio(clip)]
        video = fit(frames_thwc, size_wh)
        hint = fit(hint_thwc, size_wh, source_wh=(frames_thwc.shape[2], frames_thwc.shape[1]))
        channels = self.recipe.network.base.crossattn_emb_channels
        return {
            "clip_id": clip.clip_id,
            "ordinal": torch.tensor(ordinal),
            "video": _channels_first(video.frames),
            "hint": _channels_first(hint.frames),
            "text": torch.from_numpy(read_t5(clip.t5_path(self.root), self.recipe.data.text_tokens, channels)),
            "fps": torch.tensor(clip.fps, dtype=torch.float32),
            "padding_mask": torch.from_numpy(video.padding_mask)[None],
            "image_size": torch.tensor(video.image_size, dtype=torch.float32),
        }


def long_enough(clips: Sequence[Clip], num_frames: int, split: str) -> list[Clip]:
    """Return the clips of at least `num_frames` frames, and say which are left out."""
    usable = [clip for clip in clips if clip.num_frames is not None and clip.num_frames >= num_frames]
    if len(usable) < len(clips):
        short = sorted({clip.clip_id for clip in clips} - {clip.clip_id for clip in usable})
        logger.warning(
            "%d of %d %s clips have fewer than %d frames and are left out: %s",
            *(len(short), len(clips), split, num_frames, ", ".join(short[:20])),
        )
    return usable


def aspect_ratio(clip: Clip) -> str:
    """Return the aspect ratio that a usable clip is fitted to."""
    assert clip.width is not None
    assert clip.height is not None
    return nearest_aspect_ratio(clip.width, clip.height)


def check_stackable(clips: Sequence[Clip], recipe: Recipe) -> None:
    """Check that the clips can be stacked to micro-batches of the recipe.

    Raises:
        WorldtuneError: a micro-batch has several samples, and the clips come to different sizes.
    """
    size = recipe.training.micro_batch_size
    ratios = {aspect_ratio(clip): clip.clip_id for clip in clips}
    if size > 1 and len(ratios) > 1:
        named = [f"{ratio} (clip {clip_id})" for ratio, clip_id in sorted(ratios.items())]
        raise WorldtuneError(
            f"training.micro_batch_size is {size}, which needs clips of one aspect ratio, but the dataset has "
            f"{', '.join(named)}. Set it to 1 and raise training.gradient_accumulation instead, or use a dataset of "
            "one aspect ratio."
        )


def _channels_first(frames_thwc: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames_thwc.transpose(3, 0, 1, 2)))
