"""What a command was to make anew is due for the next one, though the files that it was asked for are there."""

import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from workspace import Workspace

from worldtune.media.video import write_video

CONFIG = """
runs: []
datasets:
  mine: {kind: folder, path: mine, num_shards: 1, min_frames: 5, min_clips: 2, held_out_fraction: 0.5, text: given,
    controls: [edge]}
"""
TARGET = "datasets/mine/dataset.json"
MANIFEST = "datasets/mine/manifests/ingest/0000.parquet"


def test_what_a_failed_or_killed_command_left_undone_is_due_for_the_next(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    root = workspace.root
    (root / "config/config.yaml").write_text(CONFIG)
    (root / "mine/t5_xxl").mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        frames = np.random.default_rng(seed).integers(0, 255, (9, 48, 64, 3), dtype=np.uint8)
        write_video(root / f"mine/{name}.mp4", frames, 24)
        (root / f"mine/{name}.txt").write_text(f"Noise of seed {seed}.")
        (root / f"mine/t5_xxl/{name}.pickle").write_bytes(pickle.dumps([np.ones((3, 1024), np.float16)]))
    workspace.snakemake(TARGET)

    ingest = root / "src/scripts/ingest.py"
    whole = ingest.read_text()
    workspace.edit("config/config.yaml", {"min_frames: 5": "min_frames: 6"})
    ingest.write_text("raise SystemExit('no disk')\n")
    for _ in range(2):
        assert workspace.snakemake(TARGET, check=False).returncode
        assert not (root / MANIFEST).exists()

    ingest.write_text("import time\ntime.sleep(600)\n")
    running = subprocess.Popen(
        workspace.command(TARGET),
        cwd=root,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        log = root / "logs/ingest/mine_0000.log"
        before = log.stat().st_mtime_ns
        while not log.exists() or log.stat().st_mtime_ns == before:
            assert running.poll() is None
            time.sleep(0.1)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()

    ingest.write_text(whole)
    finished = workspace.snakemake(TARGET).finished
    assert {"ingest[0000]", "controls[0000]", "validate"} <= set(finished)
    assert workspace.planned(TARGET) == ()
