"""Memory does not grow with a clip's length, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldtune.demo.annotators import write_depth_network, write_keypoint_networks
from worldtune.media.video import video_writer

SHORT, LONG = 16, 336
WIDTH, HEIGHT = 192, 128

PROGRAM = f"""
import resource, sys
from pathlib import Path
from worldtune.annotate.protocol import ClipToAnnotate
folder, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "depth":
    from worldtune.annotate.depth import DepthNetwork
    network = DepthNetwork(folder / "depth", "cpu", lossless=True)
else:
    from worldtune.annotate.keypoint import WholeBody
    options = dict(person_confidence_min=0.3, keypoint_confidence_min=0.3, max_people=3)
    network = WholeBody(folder / "detector.onnx", folder / "pose.onnx", "cpu", **options)
for count in ({SHORT}, {LONG}):
    facts = dict(num_frames=count, width={WIDTH}, height={HEIGHT}, fps=24.0, caption=None)
    clip = ClipToAnnotate(clip_id="clip", video=folder / f"{{count}}.mp4", **facts)
    assert network.annotate(clip, folder / "made.mp4") == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_depth_network(folder / "depth")
    write_keypoint_networks(folder, "detector.onnx", "pose.onnx")
    frames = np.random.default_rng(0).integers(0, 256, (SHORT, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    frames = frames.repeat(8, axis=1).repeat(8, axis=2)
    for count in (SHORT, LONG):
        with video_writer(folder / f"{count}.mp4", 24) as append:
            for _ in range(count // SHORT):
                append(frames)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["depth", "keypoint"])
def test_memory_does_not_grow_with_the_clip(folder, kind):
    command = [sys.executable, "-c", PROGRAM, str(folder), kind]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    short, long = (int(line) for line in ended.stdout.split()[-2:])
    # 320 frames more are 24 MB of pixels, 31 MB of depth as float32, and 2 MB of keypoints.
    assert long - short < 10_000
