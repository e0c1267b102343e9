from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import NUM_FRAMES, TEXT_CHANNELS, clip_id, tiny_recipe
from torch import Tensor
from torch.utils.data import DataLoader

from worldtune.common.errors import WorldtuneError
from worldtune.controls.edge import canny
from worldtune.dataset.clips import load_dataset, video_path
from worldtune.media.video import read_frames
from worldtune.training.order import clip_index
from worldtune.training.task import Sample
from worldtune.transfer1.batch import ClipDataset


def dataset(root: Path, **sections: dict[str, Any]) -> ClipDataset:
    return ClipDataset(load_dataset(root / "datasets" / "tiny"), tiny_recipe(**sections))


def same(first: Sample, second: Sample) -> bool:
    return all(
        torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]  # type: ignore[arg-type]
        for key, value in first.items()
    )


def test_a_sample_is_a_window_of_its_clip_under_its_own_edges(tiny_world: Path) -> None:
    clips = dataset(tiny_world)
    for ordinal in range(4):
        sample = clips[ordinal]
        clip = clips.train_clips[clip_index(5, ordinal, 3)]
        assert sample["clip_id"] == clip.clip_id
        assert {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, Tensor)} == {
            "ordinal": (),
            "video": (3, 17, 96, 160),
            "hint": (3, 17, 96, 160),
            "text": (512, TEXT_CHANNELS),
            "fps": (),
            "padding_mask": (1, 96, 160),
            "image_size": (4,),
        }
        if clip.width != 160:
            continue
        frames = read_frames(video_path(clips.root, clip.clip_id), 0, NUM_FRAMES)
        video = sample["video"]
        assert isinstance(video, Tensor)
        windows = [frames[start : start + 17] for start in range(NUM_FRAMES - 17 + 1)]
        shown = video.permute(1, 2, 3, 0).numpy()
        assert sum(np.array_equal(shown, window) for window in windows) == 1
        hint = sample["hint"]
        assert isinstance(hint, Tensor)
        edges = hint.permute(1, 2, 3, 0).numpy()
        pairs = [(low, min(255, low + gap)) for low in range(20, 100) for gap in (50, 149)]
        # More edges at the lowest thresholds, fewer at the highest.
        counts = [int(canny(shown, *pair, (1280, 704)).sum()) for pair in (pairs[0], pairs[-1])]
        assert counts[1] <= int(edges.sum()) <= counts[0]
        assert set(np.unique(edges)) <= {0, 255}


def test_samples_depend_on_the_ordinal_alone(tiny_world: Path) -> None:
    alone = dataset(tiny_world)[7]
    clips = dataset(tiny_world)
    torch.manual_seed(0)
    np.random.seed(0)
    for ordinal in (9, 3):
        clips[ordinal]
    assert same(clips[7], alone)
    loaded = next(iter(DataLoader(clips, batch_sampler=[[7]], num_workers=1)))
    assert torch.equal(loaded["hint"][0], alone["hint"])  # type: ignore[arg-type]
    assert loaded["clip_id"] == [alone["clip_id"]]


def test_windows_and_thresholds_vary_over_epochs(tiny_world: Path) -> None:
    clips = dataset(tiny_world)
    clip = clips.train_clips[0].clip_id
    seen = [sample for sample in (clips[ordinal] for ordinal in range(24)) if sample["clip_id"] == clip]
    assert len(seen) == 8
    videos = {sample["video"].numpy().tobytes() for sample in seen}  # type: ignore[union-attr]
    assert len(videos) > 1
    hints = {sample["hint"].numpy().tobytes() for sample in seen}  # type: ignore[union-attr]
    assert len(hints) > len(videos)


def test_a_clip_of_another_shape_is_padded_with_its_control(tiny_world: Path) -> None:
    clips = dataset(tiny_world)
    sample = next(sample for sample in (clips[ordinal] for ordinal in range(3)) if sample["clip_id"] == clip_id("2"))
    mask, size = sample["padding_mask"], sample["image_size"]
    assert isinstance(mask, Tensor)
    assert isinstance(size, Tensor)
    assert size.tolist() == [96.0, 160.0, 90.0, 160.0]
    assert mask[0, :3].eq(1).all()
    assert mask[0, 3:93].eq(0).all()
    assert mask[0, 93:].eq(1).all()


def test_evaluation_takes_the_first_window_and_the_stored_map(tiny_world: Path) -> None:
    clips = dataset(tiny_world)
    clip = clips.held_out_clips[0]
    sample = clips.evaluation_sample(clip)
    video, hint = sample["video"], sample["hint"]
    assert isinstance(video, Tensor)
    assert isinstance(hint, Tensor)
    stored = read_frames(clip.control_path(clips.root, "edge"), 0, 17)
    assert np.array_equal(hint.permute(1, 2, 3, 0).numpy(), stored)
    assert np.array_equal(video.permute(1, 2, 3, 0).numpy(), read_frames(clip.video_path(clips.root), 0, 17))
    assert int(sample["ordinal"]) == -1  # type: ignore[arg-type]


def test_micro_batches_need_one_aspect_ratio(tiny_world: Path) -> None:
    loaded = load_dataset(tiny_world / "datasets" / "tiny")
    square = replace(loaded.clips[0], width=96, height=96)
    recipe = tiny_recipe(training={"micro_batch_size": 2, "global_batch_size": 2})
    with pytest.raises(WorldtuneError, match=r"micro_batch_size is 2.*16:9.*1:1 \(clip 0000000000000000\)"):
        ClipDataset(replace(loaded, clips=(square, *loaded.clips[1:])), recipe)
    batch = next(iter(DataLoader(ClipDataset(loaded, recipe), batch_sampler=[[0, 1]])))
    assert batch["video"].shape == (2, 3, 17, 96, 160)


def test_short_clips_are_left_out_and_named(tiny_world: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_dataset(tiny_world / "datasets" / "tiny")
    short = replace(loaded.clips[0], num_frames=16)
    clips = ClipDataset(replace(loaded, clips=(short, *loaded.clips[1:])), tiny_recipe())
    assert len(clips) == 2
    assert clip_id("0") in caplog.text
    with pytest.raises(WorldtuneError, match="no training clip of at least 17 frames"):
        ClipDataset(replace(loaded, clips=(short,)), tiny_recipe())


def test_without_a_clip_to_measure_on_nothing_starts(tiny_world: Path) -> None:
    loaded = load_dataset(tiny_world / "datasets" / "tiny")
    training = loaded.split("train")
    short = tuple(replace(clip, num_frames=16) for clip in loaded.split("held_out"))
    for held_out in ((), short):
        with pytest.raises(
            WorldtuneError,
            match=r"Dataset tiny does not fit.*\n.*no held-out clip of at least 17 frames.*data\.num_frames",
        ):
            ClipDataset(replace(loaded, clips=(*training, *held_out)), tiny_recipe())


def test_text_of_another_width_is_refused(tiny_world: Path) -> None:
    loaded = load_dataset(tiny_world / "datasets" / "tiny")
    with pytest.raises(WorldtuneError, match=r"text embeddings have 24 channels, the network takes 16"):
        ClipDataset(replace(loaded, text_channels=24), tiny_recipe())
    with pytest.raises(WorldtuneError, match="has no edge controls"):
        ClipDataset(replace(loaded, controls=("depth",)), tiny_recipe())
