"""Depth: preparation equal to the processor's, one scale, exact and lossy files; and exact truth."""

from pathlib import Path

import numpy as np
import pytest
import torch

from worldtune.annotate.depth import FRAMES_PER_BATCH, DepthNetwork, full_size
from worldtune.annotate.depth_files import (
    MAX_LEVEL_8,
    MAX_LEVEL_16,
    depth_writer,
    grey_levels,
    lossless_path,
    read_lossless_depth,
)
from worldtune.annotate.protocol import ClipToAnnotate
from worldtune.common.errors import WorldtuneError
from worldtune.controls.given_video import GivenVideo
from worldtune.controls.protocol import ControlSource
from worldtune.demo.annotators import write_depth_network
from worldtune.demo.scenes import render_scene
from worldtune.media.video import iterate_frames, probe, read_frames, write_video
from worldtune.recipe.schema import Control


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("networks") / "depth"
    write_depth_network(folder)
    return folder


@pytest.fixture(scope="module")
def network(folder) -> DepthNetwork:
    return DepthNetwork(folder, "cpu", lossless=True)


def clip_of(folder: Path, *, num_frames: int = FRAMES_PER_BATCH + 3, fps: float = 24.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    path = folder / "clip.mp4"
    blocks = rng.integers(0, 256, (num_frames, 4, 6, 3), dtype=np.uint8)
    write_video(path, blocks.repeat(12, axis=1).repeat(12, axis=2), fps)
    return ClipToAnnotate(clip_id="clip", video=path, num_frames=num_frames, width=72, height=48, fps=fps, caption=None)


def expected_depth(network: DepthNetwork, clip: ClipToAnnotate) -> np.ndarray:
    """Depth frame by frame, through the image processor."""
    found = []
    for frame in iterate_frames(clip.video):
        with torch.inference_mode():
            inputs = network.processor(images=frame, return_tensors="pt")
            outputs = network.model(**inputs)
        sizes = [(clip.height, clip.width)]
        (depth,) = network.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
        found.append(depth["predicted_depth"].numpy())
    return np.stack(found)


@pytest.mark.parametrize("size", [(48, 72), (200, 120), (120, 300)])
def test_frames_are_prepared_as_by_the_image_processor(network, size):
    scene = render_scene("scene_0001", seed=0, num_frames=2, width=size[1], height=size[0], fps=2, samples=1)
    prepared = network.prepare(scene.frames, network.input_size(scene.frames[0]))
    expected = network.processor(images=list(scene.frames), return_tensors="pt")["pixel_values"]
    levels = ((prepared - expected).abs() * torch.tensor(network.processor.image_std)[:, None, None] * 255).numpy()
    assert levels.max() < 2.01
    assert (levels > 0.01).mean() < 0.02
    assert (levels > 1.01).mean() < 1e-4


def test_a_clip_is_scaled_as_a_whole(network, tmp_path):
    clip = clip_of(tmp_path, fps=30_000 / 1001)
    target = tmp_path / "depth/clip.mp4"
    network.annotate(clip, target)
    assert probe(target).num_frames == clip.num_frames
    depth = expected_depth(network, clip)
    exact = np.stack(list(read_lossless_depth(target)))
    assert (exact.min(), exact.max()) == (0, MAX_LEVEL_16)
    share = (depth - depth.min()) / (depth.max() - depth.min())
    assert np.abs(exact / MAX_LEVEL_16 - share).max() < 0.01
    grey = read_frames(target, 0, clip.num_frames)
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - exact / 257).mean() < 4
    for path in (target, lossless_path(target)):
        info = probe(path)
        assert (info.num_frames, info.width, info.height) == (clip.num_frames, 72, 48)
        assert info.fps == pytest.approx(clip.fps, abs=1e-12)
    assert sorted(path.name for path in target.parent.iterdir()) == ["clip.mkv", "clip.mp4"]


def test_given_bounds_are_the_scale_of_every_clip(network, folder, tmp_path):
    clip = clip_of(tmp_path)
    depth = np.concatenate(
        [full_size(window, (48, 72)).numpy() for window in network.predictions(iterate_frames(clip.video))]
    )
    bounds = tuple(float(value) for value in np.percentile(depth, (10, 90)))
    DepthNetwork(folder, "cpu", bounds=bounds, lossless=True).annotate(clip, tmp_path / "clip.mp4")
    exact = np.stack(list(read_lossless_depth(tmp_path / "clip.mp4")))
    np.testing.assert_array_equal(exact, grey_levels(depth, bounds, MAX_LEVEL_16))
    assert (exact == 0).mean() == pytest.approx(0.1, abs=0.02)


def test_a_network_that_gives_no_number_makes_no_file(folder, tmp_path):
    network = DepthNetwork(folder, "cpu")
    network.model.head.conv3.bias.data.fill_(float("nan"))
    with pytest.raises(WorldtuneError, match="not finite"):
        network.annotate(clip_of(tmp_path), tmp_path / "depth/clip.mp4")
    assert list((tmp_path / "depth").iterdir()) == []


def test_another_preparation_is_refused(tmp_path):
    write_depth_network(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"resample": 3', '"resample": 2'))
    with pytest.raises(WorldtuneError, match="resample 2"):
        DepthNetwork(tmp_path, "cpu")


def test_a_network_whose_near_is_small_is_refused(tmp_path):
    write_depth_network(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"relative"', '"metric"'))
    with pytest.raises(WorldtuneError, match="depth_estimation_type 'metric'"):
        DepthNetwork(tmp_path, "cpu")


def test_levels_are_near_bright_and_stay_within_the_scale():
    depth = np.array([-1.0, 0.0, 1.0, 2.0, 5.0])
    assert grey_levels(depth, (0.0, 2.0), 255).tolist() == [0, 0, 128, 255, 255]
    assert grey_levels(depth[1:2], (0.0, 0.0), 255).tolist() == [0]


def test_exact_depth_of_the_embedded_dataset_comes_back(tmp_path):
    scene = render_scene("scene_0001", seed=0, num_frames=6, width=160, height=96, fps=6)
    inverse = 1 / scene.depth
    bounds = (float(inverse.min()), float(inverse.max()))
    path = tmp_path / "depth.mp4"
    with depth_writer(path, scene.fps, bounds, lossless=True) as append:
        append(inverse[:4])
        append(inverse[4:])
    exact = np.stack(list(read_lossless_depth(path)))
    np.testing.assert_array_equal(exact, grey_levels(inverse, bounds, MAX_LEVEL_16))
    source = ControlSource(frames=scene.frames[2:5], start=2, file=path, size_wh=(160, 96))
    hint = GivenVideo().evaluation(source, Control(kind="depth")).hint
    np.testing.assert_array_equal(hint, read_frames(path, 0, 6)[2:5])
    error = np.abs(hint.astype(int) - grey_levels(inverse, bounds, MAX_LEVEL_8)[2:5, ..., None])
    # H.264: limited range and rounding cost one level, compression more, most at moving edges.
    assert error.mean() < 1.5
    assert np.percentile(error, 99) <= 10
