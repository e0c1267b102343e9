"""Several control inputs at once: samples, dropping, latents, what a recipe may ask for, a run from data to samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from largest_check import assert_largest_is_like_samples
from PIL import Image
from tiny_world import CONTROL, held_out_rows, tiny_inputs, tiny_recipe
from torch import Tensor
from torch.utils.data import default_collate

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.dataset.clips import load_dataset
from worldtune.dataset.fitting import dataset_report
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.schema import Recipe
from worldtune.training.run import run_training
from worldtune.training.task import Sample
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.drawing import draw_run
from worldtune.transfer1.export import export_run
from worldtune.transfer1.objective import draw_kept_hints
from worldtune.transfer1.pictures import GAP_PIXELS
from worldtune.transfer1.task import Transfer1Task, build_task

ORDINALS = range(12)


def two_controls(**sections: dict[str, Any]) -> Recipe:
    """Edges and blurred frames, for a fresh branch that takes the latents of both."""
    chosen: dict[str, dict[str, Any]] = {
        "control": {"kind": "edge", "also": ["vis"]},
        "checkpoints": {"control": ""},
        "network": {"control": {**CONTROL, "hint_channels": 40}},
    }
    for name, values in sections.items():
        chosen[name] = {**chosen.get(name, {}), **values}
    return tiny_recipe(**chosen)


def clips(root: Path, recipe: Recipe) -> ClipDataset:
    return ClipDataset(load_dataset(root / "datasets" / "tiny"), recipe)


def tensor(sample: Sample, key: str) -> Tensor:
    value = sample[key]
    assert isinstance(value, Tensor)
    return value


def task_of(root: Path, recipe: Recipe) -> Transfer1Task:
    return build_task(recipe, tiny_inputs(root, recipe), build_mesh("cpu"), torch.device("cpu"))


def test_a_sample_has_each_control_of_the_same_window(tiny_world: Path) -> None:
    both, edges = clips(tiny_world, two_controls()), clips(tiny_world, tiny_recipe())
    hints = set()
    for ordinal in range(6):
        sample, single = both[ordinal], edges[ordinal]
        hint = tensor(sample, "hint")
        assert hint.shape == (6, 17, 96, 160)
        assert torch.equal(tensor(sample, "video"), tensor(single, "video"))
        assert torch.equal(hint[:3], tensor(single, "hint"))
        # Blurred frames are like the frames; edges are not.
        difference = (hint[3:].float() - tensor(sample, "video").float()).abs().mean()
        assert difference < (hint[:3].float() - tensor(sample, "video").float()).abs().mean()
        hints.add(hint[3:].numpy().tobytes())
        assert torch.equal(tensor(both[ordinal], "hint"), hint)
    assert len(hints) == 6


def test_the_largest_batch_has_each_control(tiny_world: Path) -> None:
    assert_largest_is_like_samples(clips(tiny_world, two_controls()))


def test_evaluation_takes_the_fixed_control_of_each(tiny_world: Path) -> None:
    both = clips(tiny_world, two_controls())
    clip = both.held_out_clips[0]
    hint = tensor(both.evaluation_sample(clip), "hint")
    for index, kind in enumerate(("edge", "vis")):
        single = clips(tiny_world, tiny_recipe(control={"kind": kind})).evaluation_sample(clip)
        assert torch.equal(hint[3 * index : 3 * index + 3], tensor(single, "hint"))


def test_gray_hints_are_gray_one_by_one(tiny_world: Path) -> None:
    hint = tensor(clips(tiny_world, two_controls(control={"grayscale": True}))[0], "hint")
    for part in hint.split(3):
        assert torch.equal(part[0], part[1])
        assert torch.equal(part[0], part[2])
    assert not torch.equal(hint[0], hint[3])


@pytest.mark.usefixtures("own_process_group")
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_a_dropped_control_is_the_latents_of_mid_grey(tiny_world: Path, rate: float) -> None:
    recipe = two_controls(objective={"hint_dropout_rate": rate})
    task = task_of(tiny_world, recipe)
    samples = [task.make_dataset()[ordinal] for ordinal in ORDINALS]
    prepared = task.prepare(default_collate(samples))
    kept = draw_kept_hints(ORDINALS, 2, seed=recipe.training.seed, config=recipe.objective)
    assert prepared["hint"].shape == (len(samples), 32, 3, 12, 20)
    assert float(kept.mean()) == {0.0: 1.0, 0.5: float(kept.mean()), 1.0: 0.5}[rate]
    grey = task.encoder.tokenizer.encode(torch.zeros(1, 3, 17, 96, 160))[0] * 0.5
    for row, sample in enumerate(samples):
        pixels = tensor(sample, "hint").float() / 127.5 - 1
        for index in range(2):
            own = task.encoder.tokenizer.encode(pixels[None, 3 * index : 3 * index + 3])[0] * 0.5
            expected = own if kept[row, index] else grey
            torch.testing.assert_close(prepared["hint"][row, 16 * index : 16 * index + 16], expected)
            assert not torch.equal(own, grey)
        # Nothing depends on what else is in the batch.
        alone = task.prepare(default_collate([sample]))
        torch.testing.assert_close(alone["hint"][0], prepared["hint"][row])
    if rate == 0.5:
        assert {tuple(pair) for pair in kept.tolist()} == {(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)}


@pytest.mark.usefixtures("own_process_group")
def test_measurements_drop_nothing(tiny_world: Path) -> None:
    always, never = (
        held_out_rows(task_of(tiny_world, two_controls(objective={"hint_dropout_rate": rate}))) for rate in (1.0, 0.0)
    )
    assert always == never
    assert {row.control for row in always} == {"own", "other"}


@pytest.mark.usefixtures("own_process_group")
def test_the_branch_learns_from_each_control(tiny_world: Path) -> None:
    """Channels of the hint's first layer get a gradient where a control lies, and none where there is filling."""
    task = task_of(tiny_world, two_controls(objective={"hint_dropout_rate": 0.0}))
    for name, parameter in task.trainable.named_parameters():
        if name.startswith(("zero_blocks", "input_hint_block")):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    task.training_loss(task.prepare(default_collate([task.make_dataset()[0]]))).loss.backward()
    gradient = dict(task.trainable.named_parameters())["x_embedder2.proj.1.weight"].grad
    assert gradient is not None
    # Channels lie before the pixels of a patch.
    by_channel = gradient.unflatten(1, (41, -1)).abs().sum(dim=(0, 2))
    assert by_channel[:32].gt(0).all()
    assert by_channel[32:40].eq(0).all()


def test_a_dataset_needs_the_files_of_every_control(tiny_world: Path) -> None:
    dataset = load_dataset(tiny_world / "datasets" / "tiny")
    assert dataset_report(dataset, two_controls())["control"] == "edge-vis"
    with pytest.raises(WorldtuneError, match="it has no depth controls, only \\['edge'\\]"):
        dataset_report(dataset, two_controls(control={"also": ["vis", "depth"]}))
    with pytest.raises(WorldtuneError, match="it has no edge controls"):
        dataset_report(replace(dataset, controls=()), two_controls(control={"kind": "vis", "also": ["edge"]}))


@pytest.mark.usefixtures("own_process_group")
def test_a_run_from_data_to_samples(tiny_world: Path) -> None:
    places = {"datasets": tiny_world / "datasets", "checkpoints": tiny_world / "checkpoints"}
    run_dir = tiny_world / "results" / "two_controls"
    recipe = two_controls(data={"num_workers": 1})
    settings = {"has_overrides": False, "manifest": None, "preflight_only": False, **places}
    assert run_training(recipe, run_dir, build_task, **settings) == 0
    export_run(run_dir, checkpoints_dir=places["checkpoints"], datasets_dir=places["datasets"])
    model = run_dir / "model"
    assert (model / "edge-vis_control.pt").is_file()
    assert read_json(model / "config.json")["control"] == "edge-vis"
    card = (model / "README.md").read_text()
    assert "tags: [video, controlnet, edge, vis]" in card
    assert "**edge-vis** videos" in card
    draw_run(
        run_dir,
        run_dir / "samples",
        sampling=recipe.sampling,
        device=torch.device("cpu"),
        num_given_frames=0,
        checkpoints_dir=places["checkpoints"],
        datasets_dir=places["datasets"],
    )
    [drawn, _] = read_json(run_dir / "samples" / "samples.json")["clips"]
    assert drawn["width"] == 160
    grid = np.asarray(Image.open(run_dir / "samples" / drawn["grid"]))
    # Both controls, the ground truth, the sample.
    assert grid.shape[1] == 4 * 160 + 3 * GAP_PIXELS
    data = clips(tiny_world, recipe)
    clip = next(clip for clip in data.held_out_clips if clip.clip_id == drawn["clip_id"])
    sample = data.evaluation_sample(clip)
    shown = [*tensor(sample, "hint").split(3), tensor(sample, "video")]
    for index, column in enumerate(shown):
        left = index * (160 + GAP_PIXELS)
        assert np.array_equal(grid[:96, left : left + 160], column[:, 0].permute(1, 2, 0).numpy())
