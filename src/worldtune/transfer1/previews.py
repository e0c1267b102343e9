"""Previews of the Transfer1 family: held-out clips drawn on the mesh of a training job.

What is drawn from are the present weights, as in the original (spec/transfer1-training.md 2.9: is_ema False); those of
a moving average would have to take the place of the trained ones. Ranks of a sample compute it together, data-parallel
ranks have clips of their own. Latents of all clips come to rank 0, which alone decodes and writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from worldtune.controls.adherence import edge_adherence
from worldtune.dataset.clips import Clip
from worldtune.recipe.schema import Recipe
from worldtune.training.task import PreviewFiles
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.denoiser import Denoiser
from worldtune.transfer1.pictures import decode_frames, views_stacked, write_comparison
from worldtune.transfer1.sampler import draw_latents
from worldtune.transfer1.tokenizer import VideoTokenizer


@dataclass(frozen=True, kw_only=True)
class DrawnLatents:
    """See worldtune.training.task.DrawnClip."""

    clip: Clip
    latents: Mapping[float, Tensor]
    """What was drawn at each guidance: normalised latents [1, 16, T, H, W], float32 on the CPU."""
    other: Clip | None
    """Another held-out clip of the same size, whose edges the drawn ones should not keep to, if there is one."""
    dataset: ClipDataset
    """Gives control and ground truth."""
    tokenizer: VideoTokenizer
    recipe: Recipe

    def write(self, folder: Path) -> PreviewFiles:
        """Decode, score and write; see the protocol."""
        videos = self.dataset.reading_videos()
        sample = videos.evaluation_sample(self.clip)
        hint, true, fps = sample["hint"], sample["video"], sample["fps"]
        assert isinstance(hint, Tensor)
        assert isinstance(true, Tensor)
        drawn = {guidance: self._decode(latents) for guidance, latents in self.latents.items()}
        shown = (*hint.split(3), true, *drawn.values())
        columns = [views_stacked(video, self.recipe.num_views) for video in shown]
        files = write_comparison(folder / self.clip.clip_id, columns, float(fps))
        scores = {}
        kinds = self.recipe.control.kinds
        if "edge" in kinds:
            other = videos.evaluation_sample(self.other)["video"] if self.other else None
            scores = {guidance: _edge_scores(video, true, other) for guidance, video in drawn.items()}
        names = ("control",) if len(kinds) == 1 else kinds
        return PreviewFiles(clip_id=self.clip.clip_id, columns=(*names, "ground truth"), **files, scores=scores)

    def _decode(self, latents: Tensor) -> Tensor:
        try:
            return decode_frames(self.tokenizer, latents)
        except RuntimeError as error:
            # TorchScript gives the allocator's error another type.
            if "out of memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(f"no room to decode {list(latents.shape)} latents") from error


def _edge_scores(drawn: Tensor, true: Tensor, other: Tensor | str | None) -> dict[str, float]:
    """Return how the edges of frames, uint8 [3, T, H, W] each, agree with the true ones and with another clip's.

    A model that learns to draw clean pictures, and heeds no control, gains on both.
    """
    own = edge_adherence(_frames_last(drawn), _frames_last(true))
    scores = {"edge_f1": own.f1, "edge_precision": own.precision, "edge_recall": own.recall}
    if isinstance(other, Tensor):
        scores["edge_f1_other"] = edge_adherence(_frames_last(drawn), _frames_last(other)).f1
    return scores


def _frames_last(video: Tensor) -> np.ndarray:
    return video.permute(1, 2, 3, 0).numpy()


@torch.no_grad()
def draw_guidances(denoiser: Denoiser, latents: Tensor, conditions: Conditions, recipe: Recipe) -> dict[float, Tensor]:
    """Draw one clip at each guidance of [previews]. Collective over the ranks of a sample.

    Args:
        denoiser: the present weights.
        latents: clean latents [1, 16, T, H, W] times sigma_data, on the device; only given frames are shown to it.
        conditions: the clip's.
        recipe: says how to draw.

    Returns:
        Normalised latents of the same shape, float32 on the CPU.
    """
    previews = recipe.previews
    drawn = {}
    for guidance in previews.guidances:
        how = {"num_steps": previews.num_steps, "guidance": guidance, "seed": previews.seed}
        config = recipe.sampling.model_copy(update=how)
        found = draw_latents(denoiser, conditions, config=config, given_bcthw=latents)
        drawn[guidance] = (found / denoiser.sigma_data).float().cpu()
    return drawn


def gather_on_first(mine: Mapping[float, Tensor] | None, data: DeviceMesh) -> list[Mapping[float, Tensor]]:
    """Return what the data-parallel ranks have drawn, in their order, on the first of them; nothing on the others.

    Collective over them; a rank that had no clip left gives None.
    """
    found: list[Mapping[float, Tensor] | None] | None = [None] * data.size() if data.get_local_rank() == 0 else None
    dist.gather_object(mine, found, group=data.get_group(), group_dst=0)
    return [drawn for drawn in found or [] if drawn is not None]
