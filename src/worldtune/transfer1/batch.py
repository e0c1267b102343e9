"""Samples of the Transfer1 family: a window of a clip, its control, its text, fitted to the recipe's size.

Video and control stay uint8 until they are on the device: they are what is broadcast over a tensor-parallel group.
What a control leaves to the device (worldtune.controls.on_device) is done there, by whoever encodes it.

A sample holds `clip_id` (str), `ordinal` (int64 [], -1 in evaluation), `video` (uint8 [3, T, H, W]), `hint` (uint8
[3k, T, H, W], the recipe's k control inputs one behind the other), `text` (float32 [M, D]), `fps` (float32 []),
`padding_mask` (float32 [1, H, W], 1 where the picture is padded) and `image_size` (float32 [4]: height and width, then
those without the padding). A training sample of a recipe that filters vis on the device has `vis_frames` (uint8
[3, T, h, w]) and `vis_steps` (float32 [V, P], of each view) in the place of that control input in `hint`, which is
absent where there is no other. Where latents are cached, `latents` ([16, t, h, w] in the recipe's precision, not
scaled) takes the place of `video`. Several views lie one after the other along T and M; `view_indices` (int64 [latent
frames]) then says which camera each latent frame is of.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldtune.controls.protocol import Controlled, ControlSource
from worldtune.controls.registry import CONTROL_KINDS, SIZE_ONLY_KINDS
from worldtune.dataset.clips import CONTROL_SUFFIXES, Clip, Dataset
from worldtune.dataset.fitting import SPLITS, aspect_ratio, check_dataset, long_enough
from worldtune.dataset.latents import LatentCache
from worldtune.dataset.text import read_t5
from worldtune.media.geometry import FitResult, fit
from worldtune.media.video import read_frames
from worldtune.recipe.schema import Recipe
from worldtune.training.held_out import measured_clips
from worldtune.training.order import clip_index
from worldtune.training.random import numpy_generator
from worldtune.training.task import Sample
from worldtune.transfer1.hints import unfinished_hint
from worldtune.transfer1.latents import channels_first, read_latents

SHOWN_CLIPS = 20
"""Clips that are left out and named in the log."""
logger = logging.getLogger(__name__)


class ClipDataset(torch.utils.data.Dataset[Sample]):
    """Training samples by ordinal, and held-out ones by clip."""

    def __init__(self, dataset: Dataset, recipe: Recipe, latents: LatentCache | None = None) -> None:
        """Take the clips that are long enough for the recipe.

        Args:
            dataset: a validated dataset.
            recipe: the resolved recipe; data.cache_latents decides on the window of training samples.
            latents: where latents are read in the place of videos, if they are.

        Raises:
            WorldtuneError: the dataset does not fit the recipe.
        """
        check_dataset(dataset, recipe)
        self.root = Path(dataset.root)
        self.digest = dataset.digest
        self.scenes = dataset.scenes
        self.recipe = recipe
        self.latents = latents
        self.train_clips = long_enough(dataset.split("train"), recipe.data.num_frames)
        self.held_out_clips = long_enough(dataset.split("held_out"), recipe.data.num_frames)
        self._log_left_out(dataset)
        self.measured_clips = measured_clips(dataset, recipe)

    def _log_left_out(self, dataset: Dataset) -> None:
        used = {clip.clip_id for clip in (*self.train_clips, *self.held_out_clips)}
        short = [clip.clip_id for split in SPLITS for clip in dataset.split(split) if clip.clip_id not in used]
        if short:
            logger.warning(
                "%d clips have fewer than %d frames and are left out: %s",
                *(len(short), self.recipe.data.num_frames, ", ".join(short[:SHOWN_CLIPS])),
            )

    def __len__(self) -> int:
        """Number of training clips. Ordinals go on beyond it: each epoch has its own order."""
        return len(self.train_clips)

    def __getitem__(self, ordinal: int) -> Sample:
        """Return the training sample with this global number: a drawn window under a drawn control, of drawn views.

        Where the recipe caches latents, the window is the one that they are of.
        """
        recipe = self.recipe
        seed = recipe.training.seed
        clip = self.train_clips[clip_index(seed, ordinal, len(self.train_clips))]
        assert clip.num_frames is not None
        last_start = 0 if recipe.data.cache_latents else clip.num_frames - recipe.data.num_frames
        start = int(numpy_generator(seed, "window", ordinal).integers(0, last_start + 1))
        views = draw_views(recipe, numpy_generator(seed, "views", ordinal))
        # One stream for all views, which thereby have different colours of objects, but one after the other.
        streams = [numpy_generator(seed, "control", ordinal)]
        streams += [numpy_generator(seed, "control", kind, ordinal) for kind in recipe.control.also]
        parts = [self._view(part, start, streams) for part in self._clips(clip, views)]
        return self._assemble(clip, ordinal, parts, views)

    def evaluation_sample(self, clip: Clip) -> Sample:
        """Return the first window of a clip under its fixed control; of several views the first ones."""
        views = range(self.recipe.num_views) if self.recipe.data.views else ()
        return self._assemble(clip, -1, [self._view(part, 0, None) for part in self._clips(clip, views)], views)

    def reading_videos(self) -> "ClipDataset":
        """Return the same clips with their videos, where this dataset reads cached latents."""
        videos = copy.copy(self)
        videos.latents = None
        return videos

    def _clips(self, clip: Clip, views: Sequence[int]) -> list[Clip]:
        """Return the clips of the chosen views, or the clip itself where there is but one view."""
        names = self.recipe.data.views
        return [self.scenes[clip.clip_id][names[view]] for view in views] if views else [clip]

    def _view(self, clip: Clip, start: int, streams: Sequence[np.random.Generator] | None) -> "_View":
        """Read one clip's window and its controls: each drawn from its stream, or the fixed ones without streams."""
        recipe = self.recipe
        kinds, num_frames = recipe.control.kinds, recipe.data.num_frames
        size_wh = recipe.video_sizes_wh[aspect_ratio(clip)]
        assert clip.width is not None
        assert clip.height is not None
        if self.latents is None or not SIZE_ONLY_KINDS.issuperset(kinds):
            frames = read_frames(clip.video_path(self.root), start, num_frames)
        else:
            # Takes no memory: one byte that is shown at each place.
            frames = np.broadcast_to(np.uint8(0), (num_frames, clip.height, clip.width, 3))
        controlled = []
        for index, kind in enumerate(kinds):
            source = ControlSource(
                frames=frames,
                start=start,
                file=clip.control_path(self.root, kind) if kind in CONTROL_SUFFIXES else None,
                size_wh=size_wh,
            )
            control = CONTROL_KINDS[kind]
            controlled.append(
                control.evaluation(source, recipe.control)
                if streams is None
                else control.training(source, recipe.control, streams[index])
            )
        # A kind that takes a part of the frames is never one of several.
        shown = controlled[0].video
        # Without frames it tells the padding alone.
        video = fit(shown if self.latents is None else shown[:0], size_wh)
        height, width = shown.shape[1:3]
        text = read_t5(clip.t5_path(self.root), recipe.data.text_tokens, recipe.network.base.crossattn_emb_channels)
        finished = [each.hint for each in controlled if each.steps_left is None]
        return _View(
            video=video,
            latents=None if self.latents is None else read_latents(self.latents, clip),
            hints=[fit(hint, size_wh, source_wh=(width, height)).frames for hint in finished],
            unfinished=next((each for each in controlled if each.steps_left is not None), None),
            text=torch.from_numpy(text),
        )

    def _assemble(self, clip: Clip, ordinal: int, parts: Sequence["_View"], views: Sequence[int]) -> Sample:
        first = parts[0].video
        latents = [part.latents for part in parts if part.latents is not None]
        sample: Sample = {
            "clip_id": clip.clip_id,
            "ordinal": torch.tensor(ordinal),
            "text": torch.cat([part.text for part in parts]),
            "fps": torch.tensor(clip.fps, dtype=torch.float32),
            "padding_mask": torch.from_numpy(first.padding_mask)[None],
            "image_size": torch.tensor(first.image_size, dtype=torch.float32),
        }
        if parts[0].hints:
            hint = np.concatenate([np.concatenate(part.hints, axis=3) for part in parts])
            sample["hint"] = channels_first(hint)
        unfinished = [part.unfinished for part in parts if part.unfinished is not None]
        if unfinished:
            sample |= unfinished_hint(unfinished, aspect_ratio(clip))
        if latents:
            sample["latents"] = torch.cat(latents, dim=1)
        else:
            sample["video"] = channels_first(np.concatenate([part.video.frames for part in parts]))
        if views:
            rows = torch.tensor([self.recipe.data.view_indices[view] for view in views])
            sample["view_indices"] = rows.repeat_interleave(self.recipe.num_latent_frames)
        return sample


@dataclass(frozen=True, kw_only=True)
class _View:
    """One view's share of a sample."""

    video: FitResult
    """Without frames where latents are cached."""
    latents: Tensor | None
    """[16, t, h, w]; None where latents are not cached."""
    hints: list[np.ndarray]
    """uint8 [T, H, W, 3] of each control input."""
    unfinished: Controlled | None
    """The control input that is left to the device."""
    text: Tensor
    """float32 [M, D]."""


def draw_views(recipe: Recipe, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw a sample's views as positions in data.views: the main one and others, in order; empty for one view."""
    if not recipe.data.views:
        return ()
    others = rng.choice(len(recipe.data.views) - 1, size=recipe.num_views - 1, replace=False) + 1
    return (0, *sorted(int(other) for other in others))
