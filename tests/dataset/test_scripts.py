import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worldtune.dataset.parameters import stage_values
from worldtune.recipe.identity import fingerprint

SCRIPTS = Path(__file__).parents[2] / "src/scripts"


@pytest.fixture
def project(source):
    """A project's root with one dataset of one video."""
    source.add("a.mp4")
    source.datasets = source.folder.parent / "datasets"
    source.options |= {"path": "source"}
    config = source.config.model_dump(include={"kind", "path", "num_shards", "min_frames"})
    root = source.folder.parent
    (root / "config.yaml").write_text(yaml.safe_dump({"datasets": {"tiny": config}}))
    return root


def run(root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--dataset", "tiny", *arguments]
    environment = os.environ | {"WORLDTUNE_CONFIG": "config.yaml"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def expected(source, monkeypatch, root: Path, stage: str) -> str:
    monkeypatch.chdir(root)
    source.listing()
    return fingerprint(stage_values(stage, "tiny", source.config, shard="0000"))


@pytest.mark.parametrize("stage", ["ingest", "captions"])
def test_a_source_that_changed_after_planning_is_refused(project, source, monkeypatch, stage):
    planned = expected(source, monkeypatch, project, stage)
    done = run(project, stage, "--shard", "0000", "--expect", planned)
    assert (done.returncode, done.stdout) == (0, f"datasets/tiny/manifests/{stage}/0000.parquet\n")
    source.add("b.mp4")
    done = run(project, stage, "--shard", "0000", "--expect", planned)
    assert done.returncode == 1
    assert "changed after this job was planned: listing" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_has_no_traceback(project):
    done = run(project, "validate")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: datasets/tiny/manifests/ingest/0000.parquet does not exist")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stage", ["ingest", "captions", "t5", "controls", "cache_latents", "validate"])
def test_the_docstring_begins_with_commands_that_parse(stage):
    lines = (SCRIPTS / f"{stage}.py").read_text().splitlines()
    assert any(line.startswith(f"    python src/scripts/{stage}.py --dataset ") for line in lines[:6])
