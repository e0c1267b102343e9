"""`make retry` in the real graph, with a stand-in for pytubefix that takes files of a folder."""

import json
import subprocess
import sys
from pathlib import Path

from workspace import Workspace

from worldtune.dataset.clips import shard_of

CONFIG = """
runs: []
datasets:
  films: {kind: hdvila, max_clips: 6, num_shards: 2}
cluster:
  partitions: {cpu: null, gpu: null, network: null}
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


def test_retry_runs_only_what_failed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    root = workspace.root
    (root / "config/config.yaml").write_text(CONFIG)
    (root / "src/pytubefix").mkdir()
    (root / "src/pytubefix/__init__.py").write_text(LIBRARY)
    (root / "src/pytubefix/exceptions.py").write_text("class PytubeFixError(Exception):\n    pass\n")
    names = [f"film{number}" for number in range(6)]
    shards = {name: shard_of(f"videos/{name}.mp4", 2) for name in names}
    failing = names[0]
    other_shard = {"0000": "0001", "0001": "0000"}[shards[failing]]
    assert other_shard in shards.values()
    (root / "offered").mkdir()
    for name in names[1:]:
        (root / "offered" / name).write_text(name)
    metadata = root / "datasets/films/source/metadata.jsonl"
    metadata.parent.mkdir(parents=True)
    span = {"caption": "", "span_start": "0:00:00.000", "span_end": "0:00:01.000"}
    lines = [json.dumps({"url": f"https://films.invalid/{name}", "video_id": name, **span}) for name in names]
    metadata.write_text("\n".join(lines) + "\n")
    targets = [f"datasets/films/manifests/fetch_videos/{shard}.parquet" for shard in ("0000", "0001")]

    assert workspace.snakemake(*targets).finished == ("fetch_videos[0000]", "fetch_videos[0001]")
    asked = root / "asked.txt"
    assert sorted(asked.read_text().split()) == names
    (root / "offered" / failing).write_text(failing)
    (root / targets[0]).unlink()
    (root / targets[1]).unlink()
    workspace.snakemake(*targets)
    assert sorted(asked.read_text().split()) == names

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

    text = retry()
    assert f"1 failed downloads are tried again, in the shards {shards[failing]}" in text
    assert f"shard={other_shard}" not in text
    assert sorted(asked.read_text().split()) == sorted([*names, failing])
    assert (root / f"datasets/films/source/videos/{failing}.mp4").read_text() == failing
    assert workspace.planned(*targets) == ()
    assert "no download of films has failed" in retry()
