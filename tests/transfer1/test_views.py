"""Samples and losses of several camera views."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from largest_check import assert_largest_is_like_samples
from tiny_world import (
    FPS,
    NUM_FRAMES,
    TEXT_CHANNELS,
    cache_tiny_latents,
    tiny_inputs,
    tiny_recipe,
    write_ingested,
)
from torch import Tensor
from torch.utils.data import default_collate

from worldtune.checkpoint.splitting import split_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json
from worldtune.dataset.clips import clip_columns, clip_id, control_path, load_dataset, rows_digest, t5_path, video_path
from worldtune.dataset.text import write_t5
from worldtune.media.video import write_video
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.recipe.schema import Recipe
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import initialise
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.task import build_task
from worldtune.transfer1.tokenizer import VideoTokenizer

VIEWS = ("front", "left", "right")
NUM_SCENES = 4
VIEW_NETWORK = {
    "extra_per_block_abs_pos_emb_type": "sincos",
    "rope_t_extrapolation_ratio": 1.0,
    "n_views": 2,
    "n_views_emb": 7,
    "view_condition_dim": 6,
    "add_repeat_frame_embedding": True,
}


def view_recipe(**sections: dict[str, Any]) -> Recipe:
    network = tiny_recipe().network
    base = {**network.base.model_dump(), **VIEW_NETWORK}
    control = {**network.control.model_dump(), **VIEW_NETWORK, "in_channels": 16, "is_extend_model": True}
    data = {"dataset": "views", "num_frames": 17, "resolution": "128", "num_workers": 0, "text_tokens": 8}
    return tiny_recipe(
        **{
            "data": {**data, "views": VIEWS, "view_indices": (0, 1, 4)},
            "network": {"size": "tiny", "base": base, "control": control},
            "checkpoints": {"base": "me/views/base_model.pt", "control": "", "tokenizer": "me/codec"},
            "control": {"kind": "hdmap"},
            "objective": {"main_view_given": True, "max_condition_frames": 0},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def views_world(tiny_world: Path) -> Path:
    """A dataset of three views and a base network of two, beside the tiny world's files."""
    make_views(tiny_world / "datasets" / "views")
    network = view_recipe().network
    base, head = BaseNetwork(NetworkConfig(**network.base.model_dump())), LogVariance()
    stream = torch.Generator().manual_seed(1)
    initialise(base, stream)
    head.initialise(stream)
    state = {f"net.{name}": value for name, value in base.state_dict().items()}
    state |= {f"logvar.{name}": value for name, value in head.state_dict().items()}
    folder = tiny_world / "checkpoints/me/views"
    folder.mkdir()
    torch.save(state, folder / "base_model.pt")
    split_checkpoint(folder / "base_model.pt", folder / "checkpoints_tp_1", 1)
    return tiny_world


def make_views(root: Path) -> None:
    rows = []
    columns = clip_columns(("hdmap",), has_views=True)
    for number in range(NUM_SCENES):
        scene = clip_id(f"front/{number}.mp4")
        for index, view in enumerate(VIEWS):
            key = f"{view}/{number}.mp4"
            name = clip_id(key)
            row = dict.fromkeys(columns) | {
                "clip_id": name,
                "source_key": key,
                "status": "ok",
                "reason": "",
                "fps": FPS,
            }
            row |= {"num_frames": NUM_FRAMES, "width": 160, "height": 96, "num_tokens": 4, "view": view, "scene": scene}
            row["split"] = "held_out" if number == 0 else "train"
            rows.append(row)
            for folder in ("videos", "t5_xxl", "hdmap"):
                (root / folder).mkdir(parents=True, exist_ok=True)
            # The brightness tells number, view and frame apart.
            brightness = 20 * index + 60 * number + np.arange(NUM_FRAMES, dtype=np.uint8)
            frames = np.broadcast_to(brightness[:, None, None, None], (NUM_FRAMES, 96, 160, 3)).astype(np.uint8)
            write_video(video_path(root, name), frames, FPS)
            write_video(control_path(root, name, "hdmap"), 255 - frames, FPS)
            write_t5(t5_path(root, name), np.full((4, TEXT_CHANNELS), 10 * number + index, np.float32))
    write_ingested(root, rows)
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))
    pq.write_table(table, root / "clips.parquet")
    write_json(
        root / "dataset.json",
        {
            "format": 1,
            "name": "views",
            "digest": rows_digest(table.to_pylist()),
            "num_clips": NUM_SCENES,
            "controls": ["hdmap"],
            "text": {"encoder": "me/t5", "channels": TEXT_CHANNELS, "max_tokens": 8},
            "splits": {"train": 3, "held_out": 1},
            "views": list(VIEWS),
        },
    )


def tensors(sample: Any) -> dict[str, Tensor]:
    return {key: value for key, value in sample.items() if isinstance(value, Tensor)}


def test_a_sample_has_the_main_view_and_others_at_the_same_frames(views_world: Path) -> None:
    clips = ClipDataset(load_dataset(views_world / "datasets/views"), view_recipe())
    assert len(clips) == 3
    chosen = set()
    for ordinal in range(12):
        sample = tensors(clips[ordinal])
        assert sample["video"].shape == sample["hint"].shape == (3, 34, 96, 160)
        assert sample["text"].shape == (16, TEXT_CHANNELS)
        indices = sample["view_indices"].unflatten(0, (2, 3))
        assert indices[0].eq(0).all()
        assert indices[1].eq(indices[1, 0]).all()
        other = int(indices[1, 0])
        chosen.add(other)
        view = {1: 1, 4: 2}[other]
        text = sample["text"].unflatten(0, (2, 8))
        assert (text[1, 0, 0] - text[0, 0, 0]).item() == view
        assert text[:, 4:].eq(0).all()
        front, side = sample["video"].float().mean(dim=(0, 2, 3)).unflatten(0, (2, 17))
        assert torch.allclose(side - front, torch.full((17,), 20.0 * view), atol=2)
        hints = sample["hint"].float().mean(dim=(0, 2, 3)).unflatten(0, (2, 17))
        assert torch.allclose(hints, 255 - torch.stack((front, side)), atol=4)
    assert chosen == {1, 4}


def test_evaluation_takes_the_first_views(views_world: Path) -> None:
    clips = ClipDataset(load_dataset(views_world / "datasets/views"), view_recipe())
    (clip,) = clips.held_out_clips
    sample = tensors(clips.evaluation_sample(clip))
    assert sample["view_indices"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_recipe_of_one_view_takes_the_main_view_of_such_a_dataset(views_world: Path) -> None:
    recipe = tiny_recipe(
        data={"dataset": "views", "num_frames": 17, "resolution": "128", "text_tokens": 8}, control={"kind": "hdmap"}
    )
    clips = ClipDataset(load_dataset(views_world / "datasets/views"), recipe)
    assert tensors(clips[0])["video"].shape == (3, 17, 96, 160)
    assert "view_indices" not in clips[0]
    assert {clip.view for clip in clips.train_clips} == {"front"}


def test_missing_views_are_named(views_world: Path, tiny_world: Path) -> None:
    dataset = load_dataset(views_world / "datasets/views")
    data = view_recipe().data.model_dump() | {"views": ("front", "rear"), "view_indices": (0, 3)}
    with pytest.raises(WorldtuneError, match=r"Dataset views does not fit the recipe:\n.*no view rear, only \['front'"):
        ClipDataset(dataset, view_recipe(data=data))
    data |= {"views": ("left", "front")}
    with pytest.raises(WorldtuneError, match=r"main view is front, that of data\.views is left"):
        ClipDataset(dataset, view_recipe(data=data))


@pytest.mark.usefixtures("own_process_group")
def test_the_loss_knows_the_views(views_world: Path) -> None:
    """Only frames that are not given count, text and camera of each view matter, and the branch learns."""
    recipe = view_recipe()
    task = build_task(recipe, tiny_inputs(views_world, recipe), build_mesh("cpu"), torch.device("cpu"))
    stream = torch.Generator().manual_seed(0)
    for module in (task.denoiser.base, task.trainable):
        for parameter in module.parameters():
            # Zero layers would hide what is not connected.
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=stream)
    batch = default_collate([task.make_dataset()[0]])
    batch["text"] += 0.1 * torch.randn(batch["text"].shape, generator=stream)
    batch = task.prepare(batch)
    output = task.training_loss(batch)
    assert output.num_tokens == 2 * 3 * 6 * 10
    output.loss.backward()
    assert all(
        parameter.grad is not None
        for name, parameter in task.trainable.named_parameters()
        if not name.startswith("final_layer")
    )
    cameras = batch["view_indices"].clone()
    batch["view_indices"][:, 3:] = 6
    assert task.training_loss(batch).loss != output.loss
    batch["view_indices"] = cameras
    batch["text"] = batch["text"].unflatten(1, (2, 8)).flip(1).flatten(1, 2)
    assert task.training_loss(batch).loss != output.loss
    rows = list(itertools.chain.from_iterable(task.validate()))
    assert {row.clip_id for row in rows} == set(task.measured_clip_ids)
    assert len(rows) == 2


def test_the_branch_starts_as_a_copy_of_the_base_with_its_views(views_world: Path) -> None:
    network = view_recipe().network
    from worldtune.transfer1.control import copy_base_weights

    base = BaseNetwork(network.base)
    control = ControlNetwork(ControlNetworkConfig(**network.control.model_dump()))
    initialise(base, torch.Generator().manual_seed(0))
    names = copy_base_weights(base, control)
    assert {"view_embeddings.weight", "repeat_frame_embedding.weight", "x_embedder.proj.1.weight"} <= set(names)


def test_cached_latents_of_the_views_are_stacked_as_their_videos_are(views_world: Path) -> None:
    recipe = view_recipe()
    cache_tiny_latents(views_world, recipe)
    cached = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache_latents": True})})
    inputs = tiny_inputs(views_world, cached)
    tokenizer = VideoTokenizer(inputs.tokenizer, 17, torch.device("cpu"), torch.float32)
    clips, plain = ClipDataset(inputs.dataset, cached, inputs.latents), ClipDataset(inputs.dataset, cached)
    assert_largest_is_like_samples(clips)
    assert_largest_is_like_samples(plain)
    for ordinal in range(3):
        expected, found = tensors(plain[ordinal]), tensors(clips[ordinal])
        assert torch.equal(found["latents"], tokenizer.encode_frames(expected["video"][None])[0])
        assert torch.equal(found["hint"], expected["hint"])
        assert torch.equal(found["view_indices"], expected["view_indices"])
