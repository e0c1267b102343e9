"""Every demo recipe, from its rendered scenes to its export, two steps long."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from workspace import REPOSITORY, Workspace

RECIPES = sorted(path.stem for path in (REPOSITORY / "config/recipes").glob("demo_*.toml"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All demo recipes, trained for two steps."""
    workspace = Workspace(tmp_path_factory.mktemp("recipes"))
    workspace.shorten_base_training()
    workspace.edit(
        "config/recipes/parts/demo.toml",
        {
            "max_iter = 400": "max_iter = 2",
            "[validation]": "[validation]\nmax_clips = 2\nsigmas = [1.0]",
            "[previews]": "[previews]\nnum_clips = 1",
            # Of a base that was hardly trained.
            "[health]": "[health]\nfirst_loss_max = 10.0",
        },
    )
    workspace.snakemake("--keep-going", *(f"results/{name}/model" for name in RECIPES))
    return workspace.root


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_demo_recipe_trains_two_steps_and_exports(made: Path, name: str) -> None:
    run = made / "results" / name
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["final_step"] == 2
    lines = (run / manifest["attempt"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    weights = load_file(run / "model" / "control.safetensors")
    provenance = json.loads((run / "model" / "provenance.json").read_text())
    assert provenance["recipe"]["control"]["kind"] in name
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any("zero_blocks" in key and bool(value.abs().sum()) for key, value in weights.items())
