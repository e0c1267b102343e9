import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import worldtune.training.run as run_module

RECIPE = "demo_edge_posttrain"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Run the script with a training that only notes where it was sent."""
    called: dict[str, Any] = {}

    def run_training(_recipe: Any, run_folder: Path, _build_task: Any, **options: Any) -> int:
        called.update(run_folder=run_folder, **options)
        return 0

    monkeypatch.setattr(run_module, "run_training", run_training)
    monkeypatch.setattr(sys, "argv", ["train.py", RECIPE, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("src/scripts/train.py", run_name="__main__")
    assert ended.value.code == 0
    return called


def test_by_hand_the_run_lies_below_output_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTPUT_ROOT", raising=False)
    assert call(monkeypatch)["run_folder"] == Path("results") / RECIPE
    monkeypatch.setenv("OUTPUT_ROOT", "/elsewhere")
    called = call(monkeypatch, "--", "training.max_iter=20")
    assert (called["run_folder"], called["manifest"]) == (Path("/elsewhere") / RECIPE, None)
    assert called["has_overrides"]


def test_a_dry_run_knows_the_datasets_of_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path))
    for override, message in (
        ("data.dataset=sinthetic", "config/config.yaml has no such dataset (did you mean 'synthetic'?)"),
        ("data.text_tokens=32", "takes 32 text tokens (data.text_tokens), but dataset synthetic has up to 64"),
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", RECIPE, "--dryrun", "--", override])
        with pytest.raises(SystemExit, match=re.escape(message)):
            runpy.run_path("src/scripts/train.py", run_name="__main__")
    assert list(tmp_path.iterdir()) == []


def test_with_a_manifest_the_run_lies_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_ROOT", "/elsewhere")
    manifest = Path("results") / RECIPE / "manifest.json"
    called = call(monkeypatch, "--manifest", str(manifest))
    assert (called["run_folder"], called["manifest"]) == (manifest.parent, manifest)


def test_the_measurement_alone_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Path("results") / RECIPE / "manifest.json"
    called = call(monkeypatch, "--preflight", "--manifest", str(manifest))
    assert (called["preflight_only"], called["run_folder"]) == (True, manifest.parent)
    assert not call(monkeypatch)["preflight_only"]
