import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import cache_tiny_latents, clip_id, tiny_inputs, tiny_recipe
from torch import Tensor

from worldtune.controls.adherence import edge_adherence
from worldtune.media.video import probe
from worldtune.parallel.mesh import build_mesh
from worldtune.training.metrics import read_rows
from worldtune.training.run import run_training
from worldtune.training.state import complete_steps, folder_name, read_weights
from worldtune.training.task import PreviewFiles
from worldtune.transfer1.drawing import draw_sample
from worldtune.transfer1.pictures import GAP_PIXELS
from worldtune.transfer1.task import Transfer1Task, build_task

CPU = torch.device("cpu")
PREVIEWS = {"every": 2, "num_clips": 3, "guidances": [0.0, 2.0], "num_steps": 2}


def single(root: Path, **sections: dict[str, Any]) -> Transfer1Task:
    recipe = tiny_recipe(**{"previews": PREVIEWS} | sections)
    return build_task(recipe, tiny_inputs(root, recipe), build_mesh("cpu"), CPU)


def drawn_latents(task: Transfer1Task) -> dict[str, dict[float, Tensor]]:
    return {drawn.clip.clip_id: dict(drawn.latents) for together in task.preview() for drawn in together}


def written(task: Transfer1Task, folder: Path) -> list[PreviewFiles]:
    return [drawn.write(folder) for together in task.preview() for drawn in together]


def channels_last(video: Tensor | str) -> np.ndarray:
    assert isinstance(video, Tensor)
    return video.permute(1, 2, 3, 0).numpy()


@pytest.mark.usefixtures("own_process_group")
def test_a_preview_is_the_sample_that_an_export_would_give(tiny_world: Path, tmp_path: Path) -> None:
    task = single(tiny_world)
    recipe = task.recipe
    (first, *_) = [drawn for together in task.preview() for drawn in together]
    for guidance in (0.0, 2.0):
        sampling = recipe.sampling.model_copy(update={"guidance": guidance})
        expected = draw_sample(
            task.denoiser,
            task.encoder,
            task.dataset.evaluation_sample(first.clip),
            recipe,
            sampling=sampling,
            num_given_frames=0,
        )
        picture = np.asarray(Image.open(tmp_path / first.write(tmp_path).grid))
        column = 2 + PREVIEWS["guidances"].index(guidance)  # type: ignore[attr-defined]
        left = column * (160 + GAP_PIXELS)
        assert np.array_equal(picture[:96, left : left + 160], expected[:, 0].permute(1, 2, 0).numpy())


@pytest.mark.usefixtures("own_process_group")
def test_columns_are_control_truth_and_each_guidance(tiny_world: Path, tmp_path: Path) -> None:
    task = single(tiny_world)
    files = written(task, tmp_path)
    assert [entry.clip_id for entry in files] == [clip_id(digit) for digit in "345"]
    sample = task.dataset.evaluation_sample(task.dataset.held_out_clips[0])
    picture = np.asarray(Image.open(tmp_path / files[0].grid))
    assert picture.shape == (3 * 96 + 2 * GAP_PIXELS, 4 * 160 + 3 * GAP_PIXELS, 3)
    for column, name in enumerate(("hint", "video")):
        left = column * (160 + GAP_PIXELS)
        frames = sample[name]
        assert isinstance(frames, Tensor)
        middle = picture[96 + GAP_PIXELS : 192 + GAP_PIXELS, left : left + 160]
        assert np.array_equal(middle, frames[:, 17 // 2].permute(1, 2, 0).numpy())
    info = probe(tmp_path / files[0].video)
    assert (info.width, info.height, info.num_frames) == (4 * 160, 96, 17)
    assert (files[0].width, files[0].height, files[0].num_frames, files[0].fps) == (160, 96, 17, 24.0)


@pytest.mark.usefixtures("own_process_group")
def test_edge_runs_are_scored_against_the_true_frames(tiny_world: Path, tmp_path: Path) -> None:
    task = single(tiny_world)
    files = written(task, tmp_path)
    drawn = [drawn for together in task.preview() for drawn in together]
    for entry, clip in zip(files, drawn, strict=True):
        assert entry.scores.keys() == {0.0, 2.0}
        pixels = task.encoder.tokenizer.decode(clip.latents[2.0])[0].clamp(-1, 1)
        frames = ((pixels + 1) * 127.5).round().to(torch.uint8)
        own, other = (
            edge_adherence(channels_last(frames), channels_last(task.dataset.evaluation_sample(shown)["video"]))
            for shown in (clip.clip, clip.other or clip.clip)
        )
        expected = {"edge_f1": own.f1, "edge_precision": own.precision, "edge_recall": own.recall}
        # Clip 5 has a size of its own.
        assert (clip.other is None) == (entry.clip_id == clip_id("5"))
        assert entry.scores[2.0] == expected | ({} if clip.other is None else {"edge_f1_other": other.f1})


@pytest.mark.usefixtures("own_process_group")
def test_only_edge_runs_are_scored(tiny_world: Path, tmp_path: Path) -> None:
    task = single(tiny_world, control={"kind": "vis"}, previews={**PREVIEWS, "num_clips": 1})
    (entry,) = written(task, tmp_path)
    assert not entry.scores


@pytest.mark.usefixtures("own_process_group")
def test_cached_latents_show_the_video_all_the_same(tiny_world: Path, tmp_path: Path) -> None:
    plain = single(tiny_world)
    (expected, *_) = written(plain, tmp_path / "plain")
    recipe = tiny_recipe(previews=PREVIEWS, data={"cache_latents": True})
    cache_tiny_latents(tiny_world, recipe)
    cached = build_task(recipe, tiny_inputs(tiny_world, recipe), build_mesh("cpu"), CPU)
    (found, *_) = written(cached, tmp_path / "cached")
    grids = [np.asarray(Image.open(tmp_path / name / expected.grid)) for name in ("plain", "cached")]
    two_columns = 2 * (160 + GAP_PIXELS)
    assert np.array_equal(grids[0][:, :two_columns], grids[1][:, :two_columns])
    assert found.scores.keys() == expected.scores.keys()


@pytest.mark.usefixtures("own_process_group")
def test_drawing_leaves_generators_gradients_and_weights_alone(tiny_world: Path, tmp_path: Path) -> None:
    task = single(tiny_world)
    parameters = dict(task.trainable.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    requiring = {name for name, parameter in parameters.items() if parameter.requires_grad}
    modes = [module.training for module in task.trainable.modules()]
    torch.manual_seed(3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    drawn = [drawn for together in task.preview() for drawn in together]
    drawn[0].write(tmp_path)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.is_grad_enabled()
    assert not any(latents.requires_grad for latents in drawn[0].latents.values())
    assert all(parameter.grad is None for parameter in parameters.values())
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == requiring
    assert [module.training for module in task.trainable.modules()] == modes
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name


def train_in_this_process(root: Path, run: Path, previews: dict[str, Any]) -> Path:
    recipe = tiny_recipe(previews=previews, training={"max_iter": 3}, saving={"every": 3})
    folders = {"datasets": root / "datasets", "checkpoints": root / "checkpoints"}
    options = {"has_overrides": False, "manifest": None, "preflight_only": False}
    assert run_training(recipe, run, build_task, **options, **folders) == 0
    (attempt,) = (run / "attempts").iterdir()
    return attempt


@pytest.mark.usefixtures("own_process_group")
def test_training_is_bit_equal_with_and_without_previews(tiny_world: Path, tmp_path: Path) -> None:
    seen = train_in_this_process(tiny_world, tmp_path / "seen", {**PREVIEWS, "every": 1, "num_clips": 1})
    unseen = train_in_this_process(tiny_world, tmp_path / "unseen", {"every": 0})
    # Previews shape no weights: both are the same attempt.
    assert seen.name == unseen.name
    losses = [
        [(row["loss"], row["grad_norm"]) for row in read_rows(attempt / "metrics.jsonl")] for attempt in (seen, unseen)
    ]
    assert losses[0] == losses[1]
    assert complete_steps(seen / "checkpoints") == complete_steps(unseen / "checkpoints") == [3]
    for rate in (None, 0.1):
        found, expected = (read_weights(attempt / "checkpoints" / folder_name(3), rate) for attempt in (seen, unseen))
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    assert sorted(path.name for path in (seen / "previews").iterdir()) == [folder_name(step) for step in range(4)]
    assert not (unseen / "previews").exists()


RANK_PROGRAM = """
import json
import sys
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_previews import PREVIEWS, drawn_latents
from tiny_world import tiny_inputs, tiny_recipe
from worldtune.parallel.mesh import build_mesh
from worldtune.transfer1.task import build_task

root, out, layout = Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
recipe = tiny_recipe(parallel=layout, training={"global_batch_size": layout["data"]}, previews=PREVIEWS)
mesh = build_mesh("cpu", data=layout["data"], context=layout["context"], tensor=layout["tensor"])
task = build_task(recipe, tiny_inputs(root, recipe), mesh, torch.device("cpu"))
torch.save(drawn_latents(task), out / f"{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    "layout",
    [
        {"data": 1, "context": 1, "tensor": 2, "sequence": True},
        pytest.param({"data": 1, "context": 2, "tensor": 1}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 1, "tensor": 1}, marks=pytest.mark.slow),
        {"data": 2, "context": 1, "tensor": 1, "shard": "both"},
    ],
    ids=lambda layout: "-".join(f"{key}{layout[key]}" for key in layout),
)
@pytest.mark.usefixtures("own_process_group")
def test_ranks_draw_together_what_one_draws(tiny_world: Path, tmp_path: Path, layout: dict[str, Any]) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    here = str(Path(__file__).parent)
    arguments = [here, str(tiny_world), str(tmp_path), json.dumps({"sequence": False} | layout)]
    subprocess.run([*command, *arguments], check=True, timeout=300)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert not second
    expected = drawn_latents(single(tiny_world))
    # Three clips for two data-parallel ranks: one of them has none in the last round.
    assert list(first) == list(expected)
    for clip, by_guidance in expected.items():
        for guidance, latents in by_guidance.items():
            torch.testing.assert_close(first[clip][guidance], latents, rtol=1e-3, atol=1e-4)
