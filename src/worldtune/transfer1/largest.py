"""The largest micro-batch that training on a dataset can meet, of random numbers."""

import torch

from worldtune.dataset.fitting import aspect_ratio
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_PIXELS
from worldtune.training.random import generator
from worldtune.training.task import Batch
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.denoiser import DTYPES

FPS = 24.0


def largest_batch(dataset: ClipDataset, device: torch.device) -> Batch:
    """Return a random micro-batch of the most pixels that a training clip of `dataset` is fitted to.

    Its keys, shapes and types are those of the dataset's samples, stacked (see worldtune.transfer1.batch); equal on all
    ranks. Nothing is read.
    """
    recipe = dataset.recipe
    stream = generator(recipe.training.seed, "largest_batch")
    sizes = {recipe.video_sizes_wh[aspect_ratio(clip)] for clip in dataset.train_clips}
    width, height = max(sizes, key=lambda size: (size[0] * size[1], size))
    size, views = recipe.training.micro_batch_size, recipe.num_views
    frames = (views * recipe.data.num_frames, height, width)
    hint_channels = 3 * len(recipe.control.kinds)
    text_shape = (size, views * recipe.data.text_tokens, recipe.network.base.crossattn_emb_channels)
    batch: Batch = {
        "ordinal": torch.full((size,), -1),
        "hint": torch.randint(256, (size, hint_channels, *frames), generator=stream, dtype=torch.uint8),
        "text": torch.randn(text_shape, generator=stream),
        "fps": torch.full((size,), FPS),
        "padding_mask": torch.zeros(size, 1, height, width),
        "image_size": torch.tensor([height, width, height, width], dtype=torch.float32).repeat(size, 1),
    }
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
