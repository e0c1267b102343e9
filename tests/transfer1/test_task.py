import copy
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import CONTROL, clip_id, held_out_rows, tiny_inputs, tiny_recipe
from torch import Tensor
from torch.utils.data import default_collate

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.estimate import sample_flop
from worldtune.recipe.schema import Health
from worldtune.training.health import check_first_loss
from worldtune.training.inputs import find_inputs
from worldtune.training.task import Batch
from worldtune.transfer1.task import Transfer1Task, build_task, other_clips

CPU = torch.device("cpu")


def single(root: Path, **sections: dict[str, Any]) -> Transfer1Task:
    recipe = tiny_recipe(**sections)
    return build_task(recipe, tiny_inputs(root, recipe), build_mesh("cpu"), CPU)


def batch_of(task: Transfer1Task, *ordinals: int) -> Batch:
    return task.prepare(default_collate([task.make_dataset()[ordinal] for ordinal in ordinals]))


def gradients(task: Transfer1Task, batch: Batch) -> dict[str, Tensor]:
    task.trainable.zero_grad()
    task.training_loss(batch).loss.backward()
    return {name: p.grad.clone() for name, p in task.trainable.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("own_process_group")
def test_only_the_control_branch_learns(tiny_world: Path) -> None:
    task = single(tiny_world)
    batch = batch_of(task, 0)
    grads = gradients(task, batch)
    silent = {name for name, _ in task.trainable.named_parameters()} - set(grads)
    assert {name.split(".")[0] for name in silent} == {"final_layer"}
    assert not any(p.requires_grad for p in task.denoiser.base.parameters())
    assert not any(p.requires_grad for p in task.denoiser.logvar.parameters())
    output = task.training_loss(batch)
    assert output.loss.dtype == torch.float32
    assert not output.edm_loss.requires_grad
    assert output.num_tokens == 3 * 6 * 10
    assert output.flop == pytest.approx(sample_flop(tiny_recipe(), 3 * 6 * 10))
    assert set(task.load_reports) == {"base", "logvar", "control"}
    assert not task.load_reports["control"].missing


@pytest.mark.usefixtures("own_process_group")
def test_random_weights_do_not_pass_for_trained_ones_in_a_narrow_band(tiny_world: Path) -> None:
    batch = batch_of(task := single(tiny_world), 0)
    # The default leaves room for a batch of one clip, which these tiny networks keep within.
    with pytest.raises(WorldtuneError, match=r"edm_loss of the first step is 1\.\d+, expected 0\.001 to 1 "):
        check_first_loss(task.training_loss(batch).edm_loss.item(), batch["clip_id"], Health(first_loss_max=1.0))


@pytest.mark.usefixtures("own_process_group")
def test_a_dataset_that_does_not_fit_is_refused_before_weights_are_read(tiny_world: Path) -> None:
    recipe = tiny_recipe()
    inputs = tiny_inputs(tiny_world, recipe)
    nowhere = replace(inputs.base, split_file=tiny_world / "nowhere.split.json")
    dataset = replace(inputs.dataset, clips=inputs.dataset.split("train"))
    with pytest.raises(WorldtuneError, match="no held-out clip"):
        build_task(recipe, replace(inputs, base=nowhere, control=None, dataset=dataset), build_mesh("cpu"), CPU)


@pytest.mark.usefixtures("own_process_group")
@pytest.mark.parametrize("which", ["base", "control"])
def test_a_piece_that_is_not_the_splits_is_named(tiny_world: Path, tmp_path: Path, which: str) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(tiny_world / "checkpoints", checkpoints)
    recipe = tiny_recipe()
    inputs = find_inputs(recipe, datasets=tiny_world / "datasets", checkpoints=checkpoints)
    split = inputs.base if which == "base" else inputs.control
    assert split is not None
    stem = split.split_file.name.removesuffix(".split.json")
    piece = split.split_file.with_name(f"{stem}_model_mp_0.pt")
    state = torch.load(piece, weights_only=True)
    name = next(name for name, tensor in state["model"].items() if tensor.is_floating_point() and tensor.numel() > 1)
    state["model"][name] += 1e-3
    # Names and shapes are as they should be: only the hash can tell.
    torch.save(state, piece)
    with pytest.raises(WorldtuneError, match=rf"{piece.name} is not the file .*Delete .*{split.split_file.name}"):
        build_task(recipe, inputs, build_mesh("cpu"), CPU)
    piece.unlink()
    with pytest.raises(WorldtuneError, match=rf"{piece.name} is not the file that was written: its SHA-256 is missing"):
        build_task(recipe, inputs, build_mesh("cpu"), CPU)


@pytest.mark.usefixtures("own_process_group")
def test_a_loss_depends_on_the_ordinal_alone(tiny_world: Path) -> None:
    task = single(tiny_world)
    first = task.training_loss(batch_of(task, 3)).loss
    task.training_loss(batch_of(task, 4))
    torch.manual_seed(7)
    assert torch.equal(task.training_loss(batch_of(task, 3)).loss, first)
    again = single(tiny_world)
    assert torch.equal(again.training_loss(batch_of(again, 3)).loss, first)


@pytest.mark.usefixtures("own_process_group")
def test_a_micro_batch_is_the_mean_of_its_samples(tiny_world: Path) -> None:
    task = single(tiny_world, training={"micro_batch_size": 2, "global_batch_size": 2})
    together = task.training_loss(batch_of(task, 0, 1)).loss
    alone = torch.stack([task.training_loss(batch_of(task, ordinal)).loss for ordinal in (0, 1)])
    torch.testing.assert_close(together, alone.mean())


@pytest.mark.usefixtures("own_process_group")
def test_the_uncertainty_head_weighs_the_loss_only_where_asked(tiny_world: Path) -> None:
    weighed = single(tiny_world)
    plain = single(tiny_world, objective={"use_logvar": False})
    batch = batch_of(weighed, 0)
    first, second = weighed.training_loss(batch), plain.training_loss(batch)
    assert torch.equal(first.edm_loss, second.edm_loss)
    assert torch.equal(second.loss.detach(), second.edm_loss)
    assert not torch.equal(first.loss, second.loss)


@pytest.mark.usefixtures("own_process_group")
def test_pretraining_starts_at_the_base(tiny_world: Path) -> None:
    task = single(tiny_world, checkpoints={"control": ""})
    batch = batch_of(task, 0)
    controlled = task.training_loss(batch).edm_loss
    other = copy.copy(batch)
    other["hint"] = 1 - batch["hint"]
    assert torch.equal(task.training_loss(other).edm_loss, controlled)
    own = dict(task.trainable.named_parameters())
    base = dict(task.denoiser.base.named_parameters())
    assert torch.equal(own["x_embedder.proj.1.weight"], base["x_embedder.proj.1.weight"])
    again = single(tiny_world, checkpoints={"control": ""})
    for name, parameter in again.trainable.named_parameters():
        assert torch.equal(parameter, own[name]), name


@pytest.mark.usefixtures("own_process_group")
def test_held_out_rows_are_paired_and_repeatable(tiny_world: Path) -> None:
    task = single(tiny_world)
    rows = held_out_rows(task)
    keys = [(row.clip_id, row.sigma, row.control) for row in rows]
    # Clip 5 has a size of its own, so there is no other control for it.
    assert keys == [
        *((clip_id(digit), sigma, control) for digit in "34" for sigma in (0.5, 5.0) for control in ("other", "own")),
        *((clip_id("5"), sigma, "own") for sigma in (0.5, 5.0)),
    ]
    assert task.measured_clip_ids == [clip_id(digit) for digit in "345"]
    assert single(tiny_world, validation={"max_clips": 2}).measured_clip_ids == [clip_id(digit) for digit in "34"]
    assert all(row.loss > 0 for row in rows)
    by_key = dict(zip(keys, rows, strict=True))
    # The untrained branch does little, so that a single pair of losses may round to the same number.
    assert any(by_key[other].loss != by_key[own].loss for other, own in zip(keys[0:8:2], keys[1:8:2], strict=True))
    assert held_out_rows(task) == rows
    assert held_out_rows(single(tiny_world, training={"seed": 6})) == rows
    batch = batch_of(task, 0)
    first = task.training_loss(batch).loss
    held_out_rows(task)
    assert torch.equal(task.training_loss(batch).loss, first)


def test_other_controls_come_from_the_next_clip_of_the_same_size(tiny_world: Path) -> None:
    clips = tiny_inputs(tiny_world, tiny_recipe()).dataset.split("held_out")
    others = other_clips([*clips, replace(clips[0], clip_id=clip_id("6"))])
    assert {key[0]: value.clip_id[0] if value else None for key, value in others.items()} == {
        "3": "4",
        "4": "6",
        "6": "3",
        "5": None,
    }


@pytest.mark.usefixtures("own_process_group")
def test_given_frames_need_a_network_that_takes_them(tiny_world: Path) -> None:
    recipe = tiny_recipe()
    network = recipe.network.model_dump()
    network["base"]["in_channels"] = network["control"]["in_channels"] = 16
    with pytest.raises(WorldtuneError, match=r"x_embedder\.proj\.1\.weight"):
        single(tiny_world, network=network)


RANK_PROGRAM = """
import json
import sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_world import held_out_rows, tiny_inputs, tiny_recipe
from torch.distributed.tensor import DTensor
from torch.utils.data import default_collate
from worldtune.parallel.mesh import build_mesh
from worldtune.training.gradients import GradientAccumulator, gradient_norms, parameter_groups
from worldtune.training.sharding import trainable_parameters, wrap_like
from worldtune.transfer1.task import build_task
import torch.distributed as dist

root, out = Path(sys.argv[2]), Path(sys.argv[3])
layout, sections = json.loads(sys.argv[4]), json.loads(sys.argv[5])
torch.set_num_threads(1)
recipe = tiny_recipe(parallel=layout, training={"global_batch_size": layout["data"]}, **sections)
mesh = build_mesh("cpu", data=layout["data"], context=layout["context"], tensor=layout["tensor"])
task = build_task(recipe, tiny_inputs(root, recipe), mesh, torch.device("cpu"))
rows = [(row.clip_id, row.sigma, row.control, row.loss) for row in held_out_rows(task)]
# As the trainer does: after a measurement.
parameters = trainable_parameters(task.trainable)
gradients = GradientAccumulator(parameters, mesh)
output = task.training_loss(task.prepare(default_collate([task.make_dataset()[0]])))
output.loss.backward()
gradients.add()
groups = parameter_groups(task.trainable, parameters)
norms = gradient_norms(grads := gradients.finish(), parameters, mesh, groups)
norms = dict(zip(["all", *sorted(set(groups.values()))], norms.tolist(), strict=True))
whole = lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
grads = {name: whole(wrap_like(part, parameters[name])) for name, part in grads.items()}
torch.save({"loss": output.loss.detach(), "norms": norms, "grads": grads, "rows": rows}, out / f"{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def norms_by_hand(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Norms of all gradients and of each part of the branch; its last layer has none."""
    squares: dict[str, float] = defaultdict(float, final_layer=0.0)
    for name, gradient in gradients.items():
        parts = name.split(".")
        group = ".".join(parts[: 2 if parts[0] in ("blocks", "zero_blocks") else 1])
        for key in ("all", group):
            squares[key] += float(gradient.double().square().sum())
    return {key: square**0.5 for key, square in squares.items()}


LAYOUTS = [
    {"data": 1, "context": 1, "tensor": 2, "sequence": True},
    {"data": 2, "context": 1, "tensor": 1, "shard": "base"},
    {"data": 1, "context": 2, "tensor": 1, "shard": "both"},
    {"data": 1, "context": 2, "tensor": 1},
]


TWO_CONTROLS = {
    "control": {"also": ["vis"]},
    "checkpoints": {"control": ""},
    "network": {"control": {**CONTROL, "hint_channels": 40}},
    "objective": {"hint_dropout_rate": 0.5},
}


@pytest.mark.parametrize(
    "layout",
    [*LAYOUTS[:-1], pytest.param(LAYOUTS[-1], marks=pytest.mark.slow)],
    ids=lambda layout: "-".join(f"{key}{layout[key]}" for key in layout),
)
@pytest.mark.usefixtures("own_process_group")
def test_two_ranks_agree_with_one(tiny_world: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    compare_with_one(tiny_world, tmp_path, layout, {})


@pytest.mark.usefixtures("own_process_group")
def test_two_ranks_agree_with_one_on_several_controls(tiny_world: Path, tmp_path: Path) -> None:
    compare_with_one(tiny_world, tmp_path, LAYOUTS[0], TWO_CONTROLS)


def compare_with_one(root: Path, tmp_path: Path, layout: dict[str, Any], sections: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = tmp_path / "rank.py"
    script.write_text(RANK_PROGRAM)
    here = str(Path(__file__).parent)
    settings = ({"sequence": False} | layout, sections)
    subprocess.run(
        [*command, str(script), here, str(root), str(tmp_path), *map(json.dumps, settings)],
        check=True,
        timeout=300,
    )
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    task = single(root, **sections)
    batch = batch_of(task, 0)
    expected = gradients(task, batch)
    loss = task.training_loss(batch).loss
    rows = held_out_rows(task)
    for result in results:
        torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        assert result["norms"] == pytest.approx(norms_by_hand(expected), rel=1e-5, abs=1e-8)
        assert result["grads"].keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max()) or 1.0
            torch.testing.assert_close(result["grads"][name] / scale, gradient / scale, rtol=0, atol=2e-5, msg=name)
        assert [row[:3] for row in result["rows"]] == [(row.clip_id, row.sigma, row.control) for row in rows]
        assert [row[3] for row in result["rows"]] == pytest.approx([row.loss for row in rows], rel=1e-5)
