"""The largest micro-batch that training on a dataset can meet, of random numbers."""

import torch

from worldtune.controls.vis import PRESETS, steps_left
from worldtune.dataset.fitting import aspect_ratio
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_PIXELS
from worldtune.training.random import generator
from worldtune.training.task import Batch
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.denoiser import DTYPES
from worldtune.transfer1.hints import canvas_size, leaves_hint_to_device

FPS = 24.0
TYPICAL_BLUR = PRESETS["medium"]
"""Of what training draws; what is left to the device takes about as long and as much memory."""


def largest_batch(dataset: ClipDataset, device: torch.device) -> Batch:
    """Return a random micro-batch of the most pixels that a training clip of `dataset` is fitted to.

    Its keys, shapes and types are those of the dataset's samples, stacked (see worldtune.transfer1.batch); equal on all
    ranks. Nothing is read.
    """
    recipe = dataset.recipe
    stream = generator(recipe.training.seed, "largest_batch")
    sizes = {aspect: recipe.video_sizes_wh[aspect] for aspect in map(aspect_ratio, dataset.train_clips)}
    aspect, (width, height) = max(sizes.items(), key=lambda size: (size[1][0] * size[1][1], size[1]))
    size, views = recipe.training.micro_batch_size, recipe.num_views
    frames = (views * recipe.data.num_frames, height, width)
    left_to_device = leaves_hint_to_device(recipe)
    hint_channels = 3 * (len(recipe.control.kinds) - left_to_device)
    text_shape = (size, views * recipe.data.text_tokens, recipe.network.base.crossattn_emb_channels)
    batch: Batch = {
        "ordinal": torch.full((size,), -1),
        "text": torch.randn(text_shape, generator=stream),
        "fps": torch.full((size,), FPS),
        "padding_mask": torch.zeros(size, 1, height, width),
        "image_size": torch.tensor([height, width, height, width], dtype=torch.float32).repeat(size, 1),
    }
    if hint_channels:
        batch["hint"] = torch.randint(256, (size, hint_channels, *frames), generator=stream, dtype=torch.uint8)
    if left_to_device:
        canvas_wh = canvas_size(aspect)
        canvas = (size, 3, frames[0], canvas_wh[1], canvas_wh[0])
        batch["vis_frames"] = torch.randint(256, canvas, generator=stream, dtype=torch.uint8)
        steps = steps_left(canvas_wh, TYPICAL_BLUR).to_array()
        batch["vis_steps"] = torch.from_numpy(steps).repeat(size, views, 1)
    if dataset.latents is None:
        batch["video"] = torch.randint(256, (size, 3, *frames), generator=stream, dtype=torch.uint8)
    else:
        shape = (views * recipe.num_latent_frames, height // LATENT_PIXELS, width // LATENT_PIXELS)
        latents = torch.randn((size, LATENT_CHANNELS, *shape), generator=stream)
        batch["latents"] = latents.to(DTYPES[recipe.training.precision])
    if recipe.data.views:
        rows = torch.tensor(recipe.data.view_indices[:views])
        batch["view_indices"] = rows.repeat_interleave(recipe.num_latent_frames).repeat(size, 1)
    return {"clip_id": ["random"] * size, **{name: value.to(device) for name, value in batch.items()}}
