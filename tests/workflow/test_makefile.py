"""The Makefile asks for what a command acts on, before it sets anything up."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
VARIABLES = ("RUN", "RUNS", "DATASET", "REPO", "MAKEFLAGS", "MAKELEVEL")


@pytest.mark.parametrize(
    ("command", "missing", "example"),
    [
        *((name, "RUN", f"make {name} RUN=my_run") for name in ("run", "preflight", "why", "sample", "push", "prune")),
        *((name, "DATASET", f"make {name} DATASET=my_videos") for name in ("dataset", "overview", "retry")),
        ("compare", "RUNS", 'make compare RUNS="first second"'),
        ("push RUN=my_run", "REPO", "make push RUN=my_run REPO=organization/name"),
    ],
)
def test_what_is_not_named_is_asked_for(tmp_path: Path, command: str, missing: str, example: str) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    result = subprocess.run(
        ["make", *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode
    assert f"error: {missing} is missing" in result.stderr
    assert example in result.stderr
    assert not (tmp_path / ".venv").exists()
