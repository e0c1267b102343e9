"""A training job or snakemake itself is killed in the middle; the same command ends in the same model."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from workspace import Workspace

RECIPE = """
extends = "demo_edge_posttrain"

[training]
max_iter = 40

[validation]
sigmas = [1.0]
max_clips = 2

[sampling]
num_steps = 2
num_clips = 1

[previews]
num_steps = 2
num_clips = 1

[saving]
every = 5
"""
TARGET = "results/killed/model"


def tensors(model: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(model.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                found[f"{path.relative_to(model)}:{key}"] = file.get_tensor(key).numpy().tobytes()
    return found


def losses(run: Path) -> list[tuple[int, float]]:
    manifest = json.loads((run / "manifest.json").read_text())
    rows = (run / manifest["attempt"] / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, rows)]


def training_processes(root: Path) -> list[int]:
    """Processes of the workspace that run train.py, torchrun among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            folder = os.readlink(entry / "cwd")
        except OSError:
            continue
        if b"train.py" in command and folder == str(root):
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"snakemake ended with {process.returncode} before {what}"
        assert time.monotonic() < deadline, f"{what} did not come within 300 s"
        time.sleep(0.2)


def steps_done(root: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in root.glob("results/killed/attempts/*/metrics.jsonl"))


@pytest.mark.slow
def test_kill_and_repeat_gives_the_undisturbed_model(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.shorten_base_training()
    root = workspace.root
    (root / "config/recipes/killed.toml").write_text(RECIPE)
    workspace.snakemake(TARGET)
    undisturbed = tensors(root / TARGET)
    undisturbed_losses = losses(root / "results/killed")
    assert undisturbed
    assert [step for step, _ in undisturbed_losses] == list(range(1, 41))
    hardware = json.loads((root / "results/killed/manifest.json").read_text())["hardware"]
    assert hardware["threads"] * hardware["num_processes"] <= max(os.cpu_count() or 1, hardware["num_processes"])
    (root / "results/killed").rename(root / "results/undisturbed")

    def start() -> subprocess.Popen[str]:
        command = workspace.command(TARGET)
        log = open(root / "snakemake.log", "a")  # noqa: SIM115 - lives as long as the process
        return subprocess.Popen(
            command, cwd=root, env=workspace.environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )

    process = start()
    wait_for(lambda: steps_done(root) >= 7, process, "step 7")
    for number in training_processes(root):
        os.kill(number, signal.SIGKILL)
    assert process.wait() != 0
    assert not (root / TARGET).exists()

    process = start()
    wait_for(lambda: steps_done(root) >= 17, process, "step 17")
    process.kill()
    process.wait()
    assert training_processes(root), "the training job should outlive snakemake"

    workspace.snakemake(TARGET)
    assert tensors(root / TARGET) == undisturbed
    assert losses(root / "results/killed") == undisturbed_losses
    attempts = [path for path in (root / "results/killed/attempts").iterdir() if path.is_dir()]
    assert len(attempts) == 1
