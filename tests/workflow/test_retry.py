"""`make retry` in the real graph, with a stand-in for pytubefix that takes files of a folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from chat_service import chat_service
from workspace import Workspace, finished_jobs

from worldtune.dataset.clips import shard_of
from worldtune.media.video import write_video

CONFIG = """
runs: []
datasets:
  films:
    kind: hdvila
    max_clips: 6
    num_shards: 2
    min_frames: 5
    captioner: {{model: qwen, server: "{server}", num_frames: 8, retries: 0}}
cluster:
  partitions: {{cpu: null, gpu: null, network: null}}
"""
LIBRARY = """
import pathlib
import shutil


class YouTube:
    def __init__(self, url):
        self.streams, self.name = self, url.rpartition("/")[2]

    itag, is_sabr = 18, True

    def get_highest_resolution(self):
        with open("asked.txt", "a") as file:
            file.write(self.name + "\\n")
        return self

    @property
    def filesize(self):
        return (pathlib.Path("offered") / self.name).stat().st_size

    def download(self, *, output_path, filename, **_):
        shutil.copyfile(pathlib.Path("offered") / self.name, pathlib.Path(output_path) / filename)
"""


def pictures(payload: dict[str, Any]) -> int:
    """The number of pictures that a server was sent: each has its time before it, and the question comes last."""
    return len(payload["messages"][0]["content"]) // 2


def test_retry_runs_only_what_failed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    root = workspace.root
    (root / "src/pytubefix").mkdir()
    (root / "src/pytubefix/__init__.py").write_text(LIBRARY)
    (root / "src/pytubefix/exceptions.py").write_text("class PytubeFixError(Exception):\n    pass\n")
    names = [f"film{number}" for number in range(6)]
    shards = {name: shard_of(f"videos/{name}.mp4", 2) for name in names}
    gone = names[0]
    silent = next(name for name in names if shards[name] != shards[gone])
    write_video(root / "film.mp4", np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), dtype=np.uint8), 24)
    (root / "offered").mkdir()
    for name in names[1:]:
        shutil.copy(root / "film.mp4", root / "offered" / name)
    metadata = root / "datasets/films/source/metadata.jsonl"
    metadata.parent.mkdir(parents=True)
    lines = []
    for name in names:
        # Six frames, fewer than the captioner takes, tell the silent one.
        span = {"span_start": "0:00:00.000", "span_end": "0:00:00.250" if name == silent else "0:00:01.000"}
        lines.append(json.dumps({"url": f"https://films.invalid/{name}", "video_id": name, "caption": "", **span}))
    metadata.write_text("\n".join(lines) + "\n")
    manifests = root / "datasets/films/manifests"
    places = {
        (stage, shard): str((manifests / stage / f"{shard}.parquet").relative_to(root))
        for stage in ("fetch_videos", "make_captions")
        for shard in ("0000", "0001")
    }

    def retry() -> str:
        command = [sys.executable, "src/scripts/retry.py", "--dataset", "films"]
        done = subprocess.run(
            command,
            cwd=root,
            env=workspace.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    with chat_service() as service:
        (root / "config/config.yaml").write_text(CONFIG.format(server=service.address))
        service.reply = lambda payload: 500 if pictures(payload) == 6 else "A film."
        workspace.snakemake(*places.values())
        asked = root / "asked.txt"
        assert sorted(asked.read_text().split()) == names
        assert len(service.requests) == len(names) - 1

        shutil.copy(root / "film.mp4", root / "offered" / gone)
        service.reply = lambda payload: "A film."
        text = retry()
        assert f"  fetch_videos: 1 clip, in shard {shards[gone]}\n" in text
        assert f"  make_captions: 1 clip, in shard {shards[silent]}\n" in text
        assert finished_jobs(text) == (f"fetch_videos[{shards[gone]}]", f"make_captions[{shards[silent]}]")
        assert "nothing of films failed again" in text
        assert sorted(asked.read_text().split()) == sorted([*names, gone])
        assert [pictures(payload) for payload in service.requests[len(names) - 1 :]] == [6]
    assert (root / f"datasets/films/source/videos/{gone}.mp4").read_bytes() == (root / "film.mp4").read_bytes()
    assert "nothing of films failed for a reason that may pass" in retry()
