"""Whether a finished dataset has what a recipe needs; without PyTorch, so that a CPU job tells before a GPU waits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import CONTROL_SUFFIXES, Clip, Dataset, Split
from worldtune.media.geometry import nearest_aspect_ratio
from worldtune.recipe.schema import Recipe

VERSION = 1

SPLITS: tuple[Split, ...] = ("train", "held_out")


def check_dataset(dataset: Dataset, recipe: Recipe) -> None:
    """Check that a recipe can be trained on a dataset.

    Raises:
        WorldtuneError: a split has no clip that is long enough, the clips cannot be stacked as the recipe wants,
            control or views are missing, or the text is of another width; the message names all that is wrong.
    """
    problems = list(_problems(dataset, recipe))
    if problems:
        raise WorldtuneError(f"Dataset {dataset.name} does not fit the recipe:\n  " + "\n  ".join(problems))


def dataset_report(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe will train on, as JSON values: clips of both splits and sizes, and how many are too short.

    Raises:
        WorldtuneError: see `check_dataset`.
    """
    check_dataset(dataset, recipe)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        clips = dataset.split(split)
        usable = long_enough(clips, recipe.data.num_frames)
        sizes = Counter("{}x{}".format(*recipe.video_sizes_wh[aspect_ratio(clip)]) for clip in usable)
        splits[split] = {"clips": len(usable), "too_short": len(clips) - len(usable), "sizes": dict(sizes)}
    return {
        "format": 1,
        "dataset": dataset.name,
        "digest": dataset.digest,
        "num_frames": recipe.data.num_frames,
        "control": recipe.control.label,
        "views": list(recipe.data.views),
        "splits": splits,
    }


def _problems(dataset: Dataset, recipe: Recipe) -> Iterator[str]:
    num_frames = recipe.data.num_frames
    train = long_enough(dataset.split("train"), num_frames)
    if not train:
        yield (
            f"it has no training clip of at least {num_frames} frames; give longer clips or lower data.num_frames in "
            "the recipe"
        )
    # Found out at the end of a run otherwise, when its manifest is written.
    if not long_enough(dataset.split("held_out"), num_frames):
        yield (
            f"it has no held-out clip of at least {num_frames} frames, on which the run would be measured; raise the "
            "dataset's held_out_fraction in the configuration, give longer clips, or lower data.num_frames"
        )
    yield from _stacking_problems(train, recipe)
    for kind in recipe.control.kinds:
        if kind in CONTROL_SUFFIXES and kind not in dataset.controls:
            yield (
                f"it has no {kind} controls, only {list(dataset.controls)}; add {kind!r} to its controls in the "
                "configuration and make them"
            )
    if dataset.text_channels != recipe.network.base.crossattn_emb_channels:
        yield (
            f"its text embeddings have {dataset.text_channels} channels, the network takes "
            f"{recipe.network.base.crossattn_emb_channels}; set the dataset's text_encoder to the network's"
        )
    missing = [view for view in recipe.data.views if view not in dataset.views]
    if missing:
        yield (
            f"it has no view {', '.join(missing)}, only {list(dataset.views)}; name the dataset's views in data.views, "
            "or add the cameras to the dataset's views in the configuration"
        )
    elif recipe.data.views and recipe.data.views[0] != dataset.views[0]:
        yield (
            f"its main view is {dataset.views[0]}, that of data.views is {recipe.data.views[0]}; put the same one first"
        )


def _stacking_problems(clips: Sequence[Clip], recipe: Recipe) -> Iterator[str]:
    size = recipe.training.micro_batch_size
    ratios = {aspect_ratio(clip): clip.clip_id for clip in clips}
    if size > 1 and len(ratios) > 1:
        named = [f"{ratio} (clip {clip_id})" for ratio, clip_id in sorted(ratios.items())]
        yield (
            f"training.micro_batch_size is {size}, which needs clips of one aspect ratio, but it has "
            f"{', '.join(named)}; set it to 1 and raise training.gradient_accumulation instead, or use a dataset of "
            "one aspect ratio"
        )


def long_enough(clips: Sequence[Clip], num_frames: int) -> list[Clip]:
    """Return the clips of at least `num_frames` frames."""
    return [clip for clip in clips if clip.num_frames is not None and clip.num_frames >= num_frames]


def aspect_ratio(clip: Clip) -> str:
    """Return the aspect ratio that a usable clip is fitted to."""
    assert clip.width is not None
    assert clip.height is not None
    return nearest_aspect_ratio(clip.width, clip.height)
