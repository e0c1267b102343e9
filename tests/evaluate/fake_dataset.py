"""A made-up dataset on disk, with clips and every kind of control, as validation leaves one."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from worldtune.common.files import digest, write_json
from worldtune.dataset.clips import caption_path, clip_columns, control_path, rows_digest, video_path
from worldtune.dataset.manifest import write_manifest
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import write_video

CONTROLS = ("edge", "depth", "seg", "keypoint", "hdmap", "lidar")
FRAMES, HEIGHT, WIDTH = 7, 48, 64
MIN_CLIPS = 3


def _row(number: int, **facts: Any) -> dict[str, Any]:
    clip = digest(number, 16)
    row: dict[str, Any] = {column: digest([clip, column]) for column in clip_columns(CONTROLS)}
    return row | {
        "clip_id": clip,
        "source_key": f"clip_{number}.mp4",
        "start_s": None,
        "end_s": None,
        "split": "held_out" if number == 0 else "train",
        "status": "ok",
        "reason": "",
        "num_frames": FRAMES,
        "width": WIDTH,
        "height": HEIGHT,
        "fps": 24.0,
        "num_tokens": 10 + number,
        **facts,
    }


def make_dataset(root: Path, *, fit: bool = True, num_usable: int = 4) -> Path:
    """Write datasets/set and a Snakefile below `root` and return the dataset's folder.

    Two usable clips of different splits have the same video. Two clips are left out: one that is too short and without
    a lidar, which has a video; and one that has nothing.
    """
    (root / "Snakefile").touch()
    folder = root / "datasets" / "set"
    rows = [_row(number) for number in range(num_usable)]
    if num_usable > 1:
        rows[1]["video_sha256"] = rows[0]["video_sha256"]
    for row in rows:
        _write_clip(folder, row["clip_id"])
    reasons = "too short: 7 frames; at least 9 are needed | lidar unusable: expected it as lidar/clip_8.mp4"
    short = _row(8, status="unusable", split=None, reason=reasons)
    _write_clip(folder, short["clip_id"])
    control_path(folder, short["clip_id"], "lidar").unlink()
    nothing = dict.fromkeys(("num_frames", "width", "height", "fps", "num_tokens", "video_sha256"))
    rows += [short, _row(9, status="unusable", split=None, reason="empty video: clip_9.mp4 has 0 bytes", **nothing)]
    (folder / "validation").mkdir()
    with open(folder / "validation/clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(clip_columns(CONTROLS)))
        writer.writeheader()
        writer.writerows(rows)
    if fit:
        write_manifest(folder / "clips.parquet", rows, clip_columns(CONTROLS))
        text = {"encoder": "a/b", "channels": 4, "max_tokens": 512}
        splits = {"train": num_usable - 1, "held_out": 1}
        summary = {"format": 1, "name": "set", "digest": rows_digest(rows), "num_clips": num_usable, "text": text}
        write_json(folder / "dataset.json", {**summary, "controls": list(CONTROLS), "splits": splits})
    return folder


def _write_clip(folder: Path, clip: str) -> None:
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 90, np.uint8)
    write_video(video_path(folder, clip), frames, 24.0)
    caption_path(folder, clip).parent.mkdir(parents=True, exist_ok=True)
    caption_path(folder, clip).write_text(f"A <clip> named {clip}.\n")
    write_video(control_path(folder, clip, "edge"), frames[..., 0], 24.0, lossless=True)
    for kind in ("depth", "hdmap", "lidar"):
        write_video(control_path(folder, clip, kind), frames, 24.0)
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    mask[:, 10:20, 30:50] = True
    gone = np.zeros_like(mask)
    gone[0] = True
    things = [
        {"phrase": phrase, "segmentation_mask_rle": encode_clip_mask(area)}
        for phrase, area in (("a <box>", mask), ("what the first frame shows", gone))
    ]
    body, hands = np.zeros((133, 3), np.float16), np.zeros((42, 3), np.float16)
    body[0], body[1], hands[0] = (0.25, 0.5, 0.9), (0.75, 0.5, 0.3), (0.5, 0.25, 0.9)
    people = {frame + 5: [{"body-keypoints": body, "hand-keypoints": hands}] for frame in range(FRAMES)}
    for kind, content in (("seg", things), ("keypoint", people)):
        path = control_path(folder, clip, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=4))
