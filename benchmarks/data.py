"""How fast data is read and prepared: ratios to the plain way of doing the same, each in the same run.

Decoding reads a window of frames in the middle of a clip and at its start; masks are encoded and decoded for such a
window. Texts of different lengths go through a T5 encoder of random weights. The controls are those of
benchmarks/train_controls.py, which measures the filter on a GPU as well. Both sides of a ratio are run in turns, and
the fastest turn of each counts.

python benchmarks/data.py [--video CLIP.mp4] [--only decoding edge_vis t5 rle]
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from pycocotools import mask as coco
from train_controls import LIGHT, edge_times, scene, timed, vis_times
from transformers import T5Config, T5EncoderModel

from worldtune.annotate.t5 import TextEncoder
from worldtune.demo.text_encoder import make_tokenizer
from worldtune.formats.rle import decode_clip_mask, encode_clip_mask
from worldtune.media.video import read_frames, write_video

WINDOW = 121
CLIP_FRAMES = 242
TURNS = 2
MAX_TOKENS = 512
WORDS = [
    "a",
    "robot",
    "arm",
    "lifts",
    "the",
    "red",
    "cup",
    "from",
    "the",
    "table",
    "while",
    "two",
    "cooks",
    "watch",
    "the",
    "kettle",
    "near",
    "a",
    "window",
]


def fastest(*ways: Callable[[], object]) -> list[float]:
    """Return the fewest seconds that each way took; they take turns, so that a busy machine slows them alike."""
    turns = [[timed(way) for way in ways] for _ in range(TURNS)]
    return [min(times) for times in zip(*turns, strict=True)]


def row(name: str, baseline_name: str, seconds: tuple[float, float], count: int, unit: str) -> None:
    """Print a row of the table: what was measured, its baseline, a rate of both, and how many times it is as fast."""
    ours, baseline = seconds
    print(
        f"| {name} | {baseline_name} | {count / baseline:.4g} | {count / ours:.4g} {unit} | {baseline / ours:.2f} |",
        flush=True,
    )


def plain_pyav(path: Path, start: int) -> np.ndarray:
    """Return a window by counting frames from the clip's first one."""
    frames = []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == WINDOW:
                break
    return np.stack(frames)


def plain_opencv(path: Path, start: int) -> np.ndarray:
    """Return a window by OpenCV's reader, which seeks by frame number."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(WINDOW)]
    capture.release()
    return np.stack(frames)


def decoding(folder: Path, video: Path | None) -> None:
    """Read windows of a clip of 1280x720, or of a given one."""
    path = video or folder / "clip.mp4"
    if video is None:
        write_video(path, scene(CLIP_FRAMES, 1280, 720), 24)
    last = len(plain_starts(path)) - WINDOW
    for start in sorted({0, last // 2}):
        ours, pyav, opencv = fastest(
            lambda start=start: read_frames(path, start, WINDOW),
            lambda start=start: plain_pyav(path, start),
            lambda start=start: plain_opencv(path, start),
        )
        assert np.array_equal(read_frames(path, start, WINDOW), plain_pyav(path, start))
        name = f"decoding {WINDOW} frames from frame {start}"
        row(name, "PyAV, counting from the first frame", (ours, pyav), WINDOW, "frames/s")
        row(name, "cv2.VideoCapture, seeking", (ours, opencv), WINDOW, "frames/s")


def plain_starts(path: Path) -> range:
    """Return the numbers of a clip's frames."""
    with av.open(path) as container:
        return range(sum(1 for packet in container.demux(video=0) if packet.size))


def edge_vis(_folder: Path, _video: Path | None) -> None:
    """Make the controls of a window of 1280x720."""
    frames = scene(WINDOW, 1280, 720)
    turns = [edge_times(frames) for _ in range(TURNS)]
    seconds = min(one.loader for one in turns), min(one.baseline for one in turns)
    row("edge", "OpenCV, frame by frame", seconds, WINDOW, "frames/s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        one = vis_times(frames, LIGHT, 2, device)
        row(
            "vis, loader and GPU", "OpenCV, frame by frame", (one.loader + one.device, one.baseline), WINDOW, "frames/s"
        )
    few = frames[:2]
    few_times = vis_times(few, LIGHT, 2, torch.device("cpu"))
    row(
        "vis, the loader's share",
        "OpenCV, frame by frame",
        (few_times.loader, few_times.baseline),
        len(few),
        "frames/s",
    )


def t5(folder: Path, _video: Path | None) -> None:
    """Embed prompts of 3 to 150 words, in batches and one at a time."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=6,
        num_heads=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder)
    encoder = TextEncoder(folder, "auto")
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(3, 30))) for _ in range(96)]
    seconds = fastest(
        lambda: list(encoder.encode(prompts, MAX_TOKENS)),
        lambda: [list(encoder.encode([prompt], MAX_TOKENS)) for prompt in prompts],
    )
    row("T5, 6 layers of 512, batched", "one prompt at a time", (seconds[0], seconds[1]), len(prompts), "prompts/s")


def rle(_folder: Path, _video: Path | None) -> None:
    """Encode a mask of a clip of 704x1280, and decode a window of it."""
    rows, columns = np.ogrid[:704, :1280]
    centres = np.linspace(200, 1000, CLIP_FRAMES)
    mask = np.stack([(rows - 350) ** 2 + (columns - centre) ** 2 < 150**2 for centre in centres])
    column = np.asfortranarray(mask.reshape(-1, 1).astype(np.uint8))
    entry = encode_clip_mask(mask)
    assert entry["data"]["counts"] == coco.encode(column)["counts"]
    encoding = fastest(lambda: encode_clip_mask(mask), lambda: coco.encode(column))
    row(f"RLE, encoding {CLIP_FRAMES} frames", "pycocotools", (encoding[0], encoding[1]), CLIP_FRAMES, "frames/s")
    start = (CLIP_FRAMES - WINDOW) // 2

    def whole() -> np.ndarray:
        decoded = coco.decode(entry["data"]).reshape(mask.shape)
        return decoded[start : start + WINDOW].astype(bool)

    assert np.array_equal(decode_clip_mask(entry, start, WINDOW), whole())
    decoding_seconds = fastest(lambda: decode_clip_mask(entry, start, WINDOW), whole)
    name = f"RLE, decoding {WINDOW} of {CLIP_FRAMES} frames"
    row(name, "pycocotools, the whole clip", (decoding_seconds[0], decoding_seconds[1]), WINDOW, "frames/s")


PARTS = {"decoding": decoding, "edge_vis": edge_vis, "t5": t5, "rle": rle}


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a clip of at least 121 frames in the place of a made one")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, PyTorch {torch.__version__}, OpenCV {cv2.__version__}, PyAV {av.__version__}")
    print("| what | baseline | baseline, a second | ours, a second | ratio |")
    print("|---|---|---|---|---|")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), arguments.video)


if __name__ == "__main__":
    main()
