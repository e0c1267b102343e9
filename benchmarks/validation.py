"""Validating a dataset of many clips: seconds and peak memory of the first time, of a second one, and after a change.

python benchmarks/validation.py --folder DIR --clips 10000

The clips are made up, with manifests as the stages write them and a small video, depth, caption and embedding each. The
baseline reads and hashes every file, one after the other, without any check. Status 1 where the changed file is missed.
"""

import argparse
import hashlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.files import digest, sha256_file
from worldtune.dataset.captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.clips import caption_path, control_path, shard_name, shard_of, t5_path, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import taken_columns
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.manifest import manifest_path, write_manifest
from worldtune.dataset.t5 import COLUMNS as T5_COLUMNS
from worldtune.dataset.validate import conclude, examine
from worldtune.evaluate.validation_page import write_page
from worldtune.media.video import write_video

NAME = "many"
NUM_SHARDS = 16
FRAMES, HEIGHT, WIDTH = 9, 96, 160
TRAILER = b"\0\0\0\x10free%08d"
"""A box that players pass over, which makes each file another one."""


def make_dataset(root: Path, count: int) -> DatasetConfig:
    """Write files and manifests of `count` clips below `root`, and return their configuration."""
    options = {"kind": "folder", "path": str(root / "source"), "num_shards": NUM_SHARDS, "min_frames": FRAMES}
    rng = np.random.default_rng(0)
    sample = root / "sample.mp4"
    write_video(sample, rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8), 24)
    pixels = sample.read_bytes()
    sample.unlink()
    for folder in ("videos", "depth", "metas", "t5_xxl"):
        (root / folder).mkdir(parents=True)
    rows: dict[str, list[list[dict[str, Any]]]] = {stage: [[] for _ in range(NUM_SHARDS)] for stage in STAGES}
    for number in range(count):
        key = f"{number:08d}.mp4"
        shard = int(shard_of(key, NUM_SHARDS))
        for stage, row in _clip(root, key, number, pixels, rng.bytes(32).hex()).items():
            rows[stage][shard].append(row)
    for stage, columns in STAGES.items():
        for shard in range(NUM_SHARDS):
            write_manifest(manifest_path(root, stage, shard_name(shard)), rows[stage][shard], columns)
    return DatasetConfig.model_validate({**options, "controls": ["depth"]})


STAGES = {
    "ingest": INGEST_COLUMNS,
    "captions": CAPTION_COLUMNS,
    "t5": T5_COLUMNS,
    "controls-depth": taken_columns("depth"),
}


def _clip(root: Path, key: str, number: int, pixels: bytes, fingerprint: str) -> dict[str, dict[str, Any]]:
    clip = digest({"key": key, "start_s": None, "end_s": None}, 16)
    video, depth, text = video_path(root, clip), control_path(root, clip, "depth"), t5_path(root, clip)
    video.write_bytes(pixels + TRAILER % number)
    depth.write_bytes(pixels + TRAILER % (number + 1))
    text.write_bytes(b"embedding %d" % number)
    caption = f"A made-up clip, number {number}."
    caption_path(root, clip).write_text(caption + "\n")
    caption_path(root, clip).with_suffix(".json").write_text(json.dumps({"caption": caption, "source_key": key}))
    common = {"clip_id": clip, "source_key": key, "status": "ok", "reason": ""}
    size = {"num_frames": FRAMES, "width": WIDTH, "height": HEIGHT}
    looks = {"fingerprint": fingerprint, "brightness": 120.0, "motion": 2.0}
    hashes = {"video_sha256": sha256_file(video), "caption_sha256": _sha256(caption)}
    facts: dict[str, dict[str, Any]] = {
        "ingest": {**size, **looks, "fps": 24.0, "video_sha256": hashes["video_sha256"]},
        "captions": {"caption_sha256": hashes["caption_sha256"]},
        "t5": {**hashes, "num_tokens": 9, "truncated": False, "channels": 8, "t5_sha256": sha256_file(text)},
        "controls-depth": {**size, **hashes, "control_sha256": sha256_file(depth), "empty_frames": 0, "motion": 2.0},
    }
    return {
        stage: dict.fromkeys(columns)
        | common
        | {name: value for name, value in facts[stage].items() if name in columns}
        for stage, columns in STAGES.items()
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_all(root: Path) -> int:
    """Hash every file of the clips and return how many there are."""
    files = [path for folder in ("videos", "depth", "metas", "t5_xxl") for path in (root / folder).iterdir()]
    for path in files:
        sha256_file(path)
    return len(files)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to make the dataset; default: a temporary folder")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        datasets = Path(folder)
        root = datasets / NAME
        root.mkdir()
        seconds, config = _timed(lambda: make_dataset(root, arguments.clips))
        print(f"made {arguments.clips} clips in {seconds:.0f} s", flush=True)

        def validate() -> Path:
            found = examine(NAME, config, datasets=datasets, threads=arguments.threads)
            write_page(found, threads=arguments.threads)
            conclude(found)
            return root / "validation" / "summary.txt"

        baseline, files = _timed(lambda: hash_all(root))
        print(f"baseline, hashing {files} files: {baseline:.1f} s")
        for what in ("the first time", "again"):
            seconds, summary = _timed(validate)
            print(f"validation, {what}: {seconds:.1f} s, {seconds / baseline:.2f} x; {summary.read_text().strip()}")
        changed = next((root / "videos").iterdir())
        changed.write_bytes(changed.read_bytes()[:-1] + b"x")
        seconds, summary = _timed(validate)
        print(f"validation, one file changed: {seconds:.1f} s, {seconds / baseline:.2f} x")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        page = (root / "validation/index.html").stat().st_size / 2**20
        print(f"peak memory {peak:.0f} MiB; the page has {page:.1f} MiB")
        return 0 if f"file changed: videos/{changed.name}" in summary.read_text() else 1


if __name__ == "__main__":
    sys.exit(main())
