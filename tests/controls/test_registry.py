import pickle
from typing import get_args

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.controls.registry import CONTROL_KINDS
from worldtune.dataset.clips import COMPUTED_IN_TRAINING, CONTROL_SUFFIXES
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import write_video
from worldtune.recipe.schema import Control


def test_every_kind_of_a_recipe_is_made_and_has_files_or_none() -> None:
    kinds = set(get_args(Control.model_fields["kind"].annotation))
    assert kinds == set(CONTROL_KINDS)
    assert kinds == set(CONTROL_SUFFIXES) | COMPUTED_IN_TRAINING
    assert not set(CONTROL_SUFFIXES) & COMPUTED_IN_TRAINING


@pytest.fixture
def file_of(tmp_path, frames):
    """Writes a control file that fits the frames."""

    def make(kind: str):
        if kind in COMPUTED_IN_TRAINING:
            return None
        path = tmp_path / f"control{CONTROL_SUFFIXES[kind]}"
        if path.suffix != ".pickle":
            write_video(path, frames[::-1], 24, lossless=path.suffix == ".mkv")
            return path
        masks = np.zeros((3, 4, 48, 64), bool)
        for number, mask in enumerate(masks):
            mask[:, 10 * number : 10 * number + 8, 5:40] = True
        person = {"body-keypoints": np.full((133, 3), 0.7, np.float16), "hand-keypoints": np.ones((42, 3), np.float16)}
        person["body-keypoints"][5:13, 0] = np.linspace(0.1, 0.9, 8)
        content = {
            "seg": [{"phrase": "x", "segmentation_mask_rle": encode_clip_mask(mask)} for mask in masks],
            "keypoint": {number: [person] for number in range(4)},
        }
        path.write_bytes(pickle.dumps(content[kind]))
        return path

    return make


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_hints_are_reproducible_and_drawn_only_in_training(kind, file_of, source_of, config_of):
    source, config = source_of(file_of(kind)), config_of(kind)
    made = [CONTROL_KINDS[kind].training(source, config, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 12))]
    fixed = [CONTROL_KINDS[kind].evaluation(source, config) for _ in range(2)]
    for controlled in (*made, *fixed):
        assert controlled.video.dtype == controlled.hint.dtype == np.uint8
        assert len(controlled.video) == len(controlled.hint) == 4
        assert controlled.hint.shape == controlled.video.shape
    for first, second in (made[:2], fixed):
        assert np.array_equal(first.hint, second.hint)
        assert np.array_equal(first.video, second.video)
    random = kind in ("edge", "vis", "seg", "upscale")
    assert any(not np.array_equal(made[0].hint, other.hint) for other in made[2:]) == random
    if kind != "upscale":
        assert made[0].video is source.frames
        assert fixed[0].video is source.frames


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_grayscale_is_the_mean_of_the_colours(kind, file_of, source_of, config_of):
    source = source_of(file_of(kind))
    coloured = CONTROL_KINDS[kind].evaluation(source, config_of(kind)).hint
    gray = CONTROL_KINDS[kind].evaluation(source, config_of(kind, grayscale=True)).hint
    assert np.array_equal(gray, np.rint(coloured.mean(axis=3, keepdims=True)).repeat(3, axis=3))
    drawn = CONTROL_KINDS[kind].training(source, config_of(kind, grayscale=True), np.random.default_rng(0)).hint
    assert (drawn[..., 0] == drawn[..., 2]).all()


@pytest.mark.parametrize("kind", CONTROL_SUFFIXES)
def test_files_that_do_not_fit_are_named(kind, file_of, source_of, config_of, tmp_path, frames):
    path = file_of(kind)
    control, config = CONTROL_KINDS[kind], config_of(kind)
    for source in (
        source_of(path, start=1),
        source_of(path.with_stem("missing")),
        *([source_of(path, frames=frames[:, :40])] if kind != "keypoint" else []),
    ):
        with pytest.raises(WorldtuneError) as caught:
            control.evaluation(source, config)
        assert str(source.file) in str(caught.value)
    with pytest.raises(WorldtuneError, match="none was given"):
        control.evaluation(source_of(), config)
    damaged = path.with_stem("damaged")
    damaged.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(WorldtuneError, match="damaged"):
        control.evaluation(source_of(damaged), config)
