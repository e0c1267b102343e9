"""The demo learns: held-out loss falls, and a clip's own control serves it better than another clip's."""

from statistics import fmean

import pytest
from workspace import Workspace

from worldtune.common.files import read_json
from worldtune.training.metrics import VALIDATION_FILE, read_rows

SEEDS = (1, 2, 3)


@pytest.mark.slow
def test_the_branch_learns_to_follow_its_control_for_each_seed(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("effect"))
    for seed in SEEDS:
        recipe = f'extends = "demo_edge_posttrain"\n[training]\nseed = {seed}\n'
        (workspace.root / f"config/recipes/seed_{seed}.toml").write_text(recipe)
    runs = [workspace.root / f"results/seed_{seed}" for seed in SEEDS]
    workspace.snakemake(*(f"results/{run.name}/manifest.json" for run in runs))
    for run in runs:
        manifest = read_json(run / "manifest.json")
        losses: dict[tuple[int, str], dict[str, list[float]]] = {}
        for row in read_rows(run / manifest["attempt"] / VALIDATION_FILE):
            losses.setdefault((row["step"], row["control"]), {}).setdefault(row["clip_id"], []).append(row["loss"])
        by_clip = {key: {clip: fmean(values) for clip, values in clips.items()} for key, clips in losses.items()}
        first, last = by_clip[0, "own"], by_clip[manifest["final_step"], "own"]
        other = by_clip[manifest["final_step"], "other"]
        assert len(last) >= 6
        assert first.keys() == last.keys() == other.keys()
        gains = {clip: other[clip] - last[clip] for clip in last}
        print(f"{run.name}: held-out loss {fmean(first.values()):.4f} -> {fmean(last.values()):.4f}; with another")
        print(
            f"  control {fmean(other.values()):.4f}; own lower for {sum(g > 0 for g in gains.values())} of {len(gains)}"
        )
        assert fmean(last.values()) < fmean(first.values())
        assert fmean(gains.values()) > 0
        assert sum(gain > 0 for gain in gains.values()) > len(gains) / 2
