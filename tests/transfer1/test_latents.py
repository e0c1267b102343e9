import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import cache_tiny_latents, clip_id, held_out_rows, make_world, tiny_inputs, tiny_recipe
from torch import Tensor
from torch.utils.data import default_collate

import worldtune.transfer1.batch as batch_module
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file, write_json
from worldtune.dataset.clips import Clip, load_dataset
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.latents import COLUMNS, LatentCache, LatentsKind, inputs_text, latents_path
from worldtune.dataset.manifest import manifest_path, read_manifest, write_manifest
from worldtune.parallel.mesh import build_mesh
from worldtune.training.task import LossOutput
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.latents import read_latents
from worldtune.transfer1.task import Transfer1Task, build_task
from worldtune.transfer1.tokenizer import VideoTokenizer

CPU = torch.device("cpu")
CACHED = {"cache_latents": True}


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    """A world of its own, whose files a test may change."""
    for name in ("datasets", "checkpoints"):
        shutil.copytree(tiny_world / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def short_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose clips have exactly the frames of a sample, with cached latents."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("short")
    make_world(root, num_frames=17)
    cache_tiny_latents(root, tiny_recipe())
    return root


def cache_of(root: Path) -> tuple[LatentCache, Clip]:
    recipe = tiny_recipe(data=CACHED)
    cache = tiny_inputs(root, recipe).latents
    assert cache is not None
    return cache, load_dataset(root / "datasets/tiny").clips[0]


def files(root: Path) -> dict[str, tuple[int, str]]:
    folder = root / "datasets/tiny" / LatentsKind.of(tiny_recipe()).stage
    return {path.stem: (path.stat().st_mtime_ns, sha256_file(path)) for path in folder.iterdir()}


def edit_rows(root: Path, **values: Any) -> None:
    """Change columns of the first clip in the manifest of stage ingest."""
    path = manifest_path(root / "datasets/tiny", "ingest", "0000")
    rows = read_manifest(path, INGEST_COLUMNS)
    rows[0].update(values)
    write_manifest(path, rows, INGEST_COLUMNS)


def task_of(root: Path, **sections: dict[str, Any]) -> Transfer1Task:
    recipe = tiny_recipe(**sections)
    return build_task(recipe, tiny_inputs(root, recipe), build_mesh("cpu"), CPU)


def loss_of(task: Transfer1Task, ordinal: int) -> LossOutput:
    return task.training_loss(task.prepare(default_collate([task.make_dataset()[ordinal]])))


def test_latents_are_the_tokenizers_output_of_the_first_window(world: Path) -> None:
    recipe = tiny_recipe()
    rows = read_manifest(cache_tiny_latents(world, recipe), COLUMNS)
    assert [row["clip_id"] for row in rows] == [clip_id(digit) for digit in "012345"]
    clips = ClipDataset(load_dataset(world / "datasets/tiny"), recipe)
    tokenizer = VideoTokenizer(world / "checkpoints/me/codec", 17, CPU, torch.float32)
    cache, _ = cache_of(world)
    for clip, row in zip(load_dataset(world / "datasets/tiny").clips, rows, strict=True):
        video = clips.evaluation_sample(clip)["video"]
        assert isinstance(video, Tensor)
        latents = read_latents(cache, clip)
        assert torch.equal(latents, tokenizer.encode_frames(video[None])[0])
        assert (latents.dtype, tuple(latents.shape)) == (torch.float32, cache.shape(clip))
        assert row["latents_sha256"] == sha256_file(cache.path(clip))


def test_only_clips_whose_inputs_changed_are_encoded_again(world: Path) -> None:
    manifest = cache_tiny_latents(world, tiny_recipe())
    content, before = manifest.read_bytes(), files(world)
    assert cache_tiny_latents(world, tiny_recipe()).read_bytes() == content
    assert files(world) == before

    edit_rows(world, video_sha256="e" * 64)
    cache_tiny_latents(world, tiny_recipe())
    after = files(world)
    assert {name for name in before if before[name] != after[name]} == {clip_id("0")}

    write_json(world / "checkpoints/me/codec/files.json", {"encoder.jit": "1" * 64})
    cache_tiny_latents(world, tiny_recipe())
    assert all(after[name] != value for name, value in files(world).items())


def test_each_window_size_and_precision_has_files_of_its_own(world: Path) -> None:
    cache_tiny_latents(world, tiny_recipe())
    before = files(world)
    others = [
        tiny_recipe(data={"num_frames": 9}),
        tiny_recipe(data={"resolution": "256"}),
        tiny_recipe(training={"precision": "bfloat16"}),
    ]
    for recipe in others:
        cache_tiny_latents(world, recipe)
        kind = LatentsKind.of(recipe)
        [latents] = load_file(latents_path(world / "datasets/tiny", kind, clip_id("0"))).values()
        assert tuple(latents.shape) == kind.shape(160, 96)
        assert str(latents.dtype) == f"torch.{recipe.training.precision}"
    assert files(world) == before


def test_a_clip_that_is_too_short_keeps_a_row(world: Path) -> None:
    edit_rows(world, num_frames=16)
    row = read_manifest(cache_tiny_latents(world, tiny_recipe()), COLUMNS)[0]
    assert (row["status"], row["latents_sha256"]) == ("unusable", None)
    assert row["reason"] == "latents unusable: 16 frames, a sample needs 17"
    with pytest.raises(WorldtuneError, match=r"no latents of 1 of 6 clips as they are now \(0000000000000000\)"):
        tiny_inputs(world, tiny_recipe(data=CACHED))


def test_training_without_a_cache_names_what_makes_it(tiny_world: Path) -> None:
    target = r"`snakemake .*manifests/latents/me/codec/17_128_float32/0000.parquet`"
    with pytest.raises(WorldtuneError, match=rf"no latents of 6 of 6 clips.*data.cache_latents.*{target}"):
        tiny_inputs(tiny_world, tiny_recipe(data=CACHED))


def test_another_tokenizer_or_video_is_found_before_training(world: Path) -> None:
    cache_tiny_latents(world, tiny_recipe())
    tiny_inputs(world, tiny_recipe(data=CACHED))
    write_json(world / "checkpoints/me/codec/files.json", {"encoder.jit": "1" * 64})
    with pytest.raises(WorldtuneError, match="no latents of 6 of 6 clips as they are now"):
        tiny_inputs(world, tiny_recipe(data=CACHED))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"0{16}\.safetensors does not exist\. Delete .*then make it again: `snakemake "),
        ("torn", r"0{16}\.safetensors holds no latents \(.*\)\. Delete it and .*then make them again: `snakemake "),
        ("other inputs", r"was made from .*\"num_frames\":9.*, expected .*\"num_frames\":17.*Delete it"),
        (
            "other shape",
            r"holds torch\.float32 of shape \[16, 2, 12, 20\], expected torch\.float32 of \[16, 3, 12, 20\]",
        ),
        ("other type", r"holds torch\.bfloat16 of shape .*expected torch\.float32 of .*Delete it"),
    ],
)
def test_a_file_that_does_not_fit_is_named(world: Path, damage: str, message: str) -> None:
    cache_tiny_latents(world, tiny_recipe())
    cache, clip = cache_of(world)
    path = cache.path(clip)
    latents = read_latents(cache, clip)
    made_from = {"made_from": inputs_text(cache.inputs(clip))}
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other inputs":
        cache_tiny_latents(world, tiny_recipe(data={"num_frames": 9}))
        shutil.copy(latents_path(cache.root, replace(cache.kind, num_frames=9), clip.clip_id), path)
    elif damage == "other shape":
        save_file({"latents": latents[:, :2].contiguous()}, path, metadata=made_from)
    else:
        save_file({"latents": latents.bfloat16()}, path, metadata=made_from)
    with pytest.raises(WorldtuneError, match=message):
        read_latents(cache, clip)


@pytest.mark.usefixtures("own_process_group")
def test_losses_equal_those_of_an_uncached_run_where_there_is_one_window(short_world: Path) -> None:
    plain, cached = task_of(short_world), task_of(short_world, data=CACHED)
    for ordinal in range(4):
        sample = cached.make_dataset()[ordinal]
        assert "video" not in sample
        expected, found = loss_of(plain, ordinal), loss_of(cached, ordinal)
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(found.edm_loss, expected.edm_loss)
    assert held_out_rows(cached) == held_out_rows(plain)


def test_samples_differ_from_uncached_ones_in_nothing_else(short_world: Path) -> None:
    recipe = tiny_recipe(data=CACHED)
    inputs = tiny_inputs(short_world, recipe)
    plain, cached = ClipDataset(inputs.dataset, tiny_recipe()), ClipDataset(inputs.dataset, recipe, inputs.latents)
    for ordinal in range(3):
        expected, found = plain[ordinal], cached[ordinal]
        assert found.keys() - expected.keys() == {"latents"}
        assert expected.keys() - found.keys() == {"video"}
        for key in expected.keys() & found.keys():
            assert np.array_equal(expected[key], found[key]), key


def test_the_window_is_the_cached_one_and_the_control_is_drawn(world: Path) -> None:
    recipe = tiny_recipe(data=CACHED)
    clips = ClipDataset(load_dataset(world / "datasets/tiny"), recipe)
    seen = [sample for sample in (clips[ordinal] for ordinal in range(12)) if sample["clip_id"] == clip_id("0")]
    first = clips.evaluation_sample(clips.train_clips[0])["video"]
    assert len(seen) == 4
    assert all(np.array_equal(sample["video"], first) for sample in seen)
    assert len({np.asarray(sample["hint"]).tobytes() for sample in seen}) > 1


@pytest.mark.parametrize("kind", ["edge", "vis", "depth"])
def test_videos_are_decoded_only_for_controls_that_look_at_them(
    world: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache_tiny_latents(world, tiny_recipe())
    recipe = tiny_recipe(data=CACHED, control={"kind": kind})
    dataset = replace(load_dataset(world / "datasets/tiny"), controls=("edge", "depth"))
    shutil.copytree(world / "datasets/tiny/videos", world / "datasets/tiny/depth")
    cache, _ = cache_of(world)
    decoded: list[int] = []
    read_frames = batch_module.read_frames

    def watched(path: Path, start: int, num_frames: int) -> np.ndarray:
        decoded.append(start)
        return read_frames(path, start, num_frames)

    monkeypatch.setattr(batch_module, "read_frames", watched)
    clips = ClipDataset(dataset, recipe, cache)
    samples = [clips[ordinal] for ordinal in range(3)]
    assert decoded == ([] if kind == "depth" else [0, 0, 0])
    for sample in samples:
        assert isinstance(sample["latents"], Tensor)
        assert isinstance(sample["hint"], Tensor)
        assert sample["latents"].shape == (16, 3, 12, 20)
        assert sample["hint"].shape == (3, 17, 96, 160)
        assert sample["hint"].any()
