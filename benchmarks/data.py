"""How fast data is read and prepared: ratios to the plain way of doing the same, each in the same run.

Decoding reads a window of frames at the start and in the middle of a clip; masks are encoded and decoded for such a
window. Texts of different lengths go through a T5 encoder of random weights. The controls are those of
benchmarks/train_controls.py, which measures the filter of vis on a GPU as well. Both sides of a ratio are run in turns,
and the fastest turn of each counts.

python benchmarks/data.py [--size 1280x720] [--turns 3] [--prompts 96] [--only decoding edge_vis t5 rle]
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from pycocotools import mask as coco
from train_controls import LIGHT, edge_times, scene, timed, vis_times
from transformers import T5Config, T5EncoderModel

from worldtune.annotate.t5 import TOKENS_PER_BATCH, TextEncoder
from worldtune.dataset.scenes import scene_names
from worldtune.demo.scenes import plan_scene
from worldtune.demo.text_encoder import make_tokenizer
from worldtune.formats.rle import decode_clip_mask, encode_clip_mask
from worldtune.media.video import read_frames, write_video

WINDOW = 121
CLIP_FRAMES = 242
MAX_TOKENS = 512
FEW_TOKENS = 512
"""Tokens of a batch that stays within the caches."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and how often."""

    width: int
    height: int
    turns: int
    prompts: int
    folder: Path
    """Where files may be written."""

    def fastest(self, *ways: Callable[[], object]) -> list[float]:
        """Return the fewest seconds that each way took; they take turns, so that a busy machine slows them alike."""
        turns = [[timed(way) for way in ways] for _ in range(self.turns)]
        return [min(times) for times in zip(*turns, strict=True)]


def row(name: str, baseline_name: str, ours: float, baseline: float, count: int, unit: str) -> None:
    """Print a row of the table of so many units in some seconds of ours and of the baseline."""
    rates = f"{count / baseline:.4g} | {count / ours:.4g}"
    print(f"| {name} | {baseline_name} | {rates} | {unit} | {baseline / ours:.2f} |", flush=True)


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


def decoding(bench: Bench) -> None:
    """Read windows of a clip."""
    path = bench.folder / "clip.mp4"
    write_video(path, scene(CLIP_FRAMES, bench.width, bench.height), 24)
    for start in (0, (CLIP_FRAMES - WINDOW) // 2):
        assert np.array_equal(read_frames(path, start, WINDOW), plain_pyav(path, start))
        ways = [lambda reader=reader, start=start: reader(path, start) for reader in (plain_pyav, plain_opencv)]
        ours, pyav, opencv = bench.fastest(lambda start=start: read_frames(path, start, WINDOW), *ways)
        name = f"decoding {WINDOW} frames from frame {start}"
        row(name, "PyAV, counting from the first frame", ours, pyav, WINDOW, "frames/s")
        row(name, "cv2.VideoCapture, seeking", ours, opencv, WINDOW, "frames/s")


def edge_vis(bench: Bench) -> None:
    """Make the controls of a window."""
    frames = scene(WINDOW, bench.width, bench.height)
    turns = [edge_times(frames) for _ in range(bench.turns)]
    seconds = min(one.loader for one in turns), min(one.baseline for one in turns)
    row("edge", "OpenCV, frame by frame", *seconds, WINDOW, "frames/s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Loaders leave the filter to the GPU, and without one nothing is measured of it.
    part = frames if device.type == "cuda" else frames[:8]
    times = [vis_times(part, LIGHT, 2, device) for _ in range(bench.turns)]
    baseline = min(one.baseline for one in times)
    row(
        "vis, loader (no filter)",
        "OpenCV, frame by frame",
        min(one.loader for one in times),
        baseline,
        len(part),
        "frames/s",
    )
    if device.type == "cuda":
        both = min(one.loader + one.device for one in times)
        row("vis, loader and GPU", "OpenCV, frame by frame", both, baseline, len(part), "frames/s")


def t5(bench: Bench) -> None:
    """Embed prompts alone, as the stage does on a CPU, in batches as on a GPU, and in half precision."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(bench.folder)
    sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 4, "num_heads": 16}
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **sizes)).save_pretrained(
        bench.folder
    )
    alone, half, batched, few = (
        TextEncoder(bench.folder, "cpu", precision) for precision in ("float32", "bfloat16", "float32", "float32")
    )
    batched.tokens_per_batch, few.tokens_per_batch = TOKENS_PER_BATCH, FEW_TOKENS
    ways = {
        f"batches of {TOKENS_PER_BATCH} tokens": batched,
        f"batches of {FEW_TOKENS} tokens": few,
        "alone, bfloat16": half,
    }

    def embed(encoder: TextEncoder, prompts: list[str]) -> None:
        for _ in encoder.encode(prompts, MAX_TOKENS):
            pass

    sentences = [plan_scene(name, seed=0).caption for name in scene_names(bench.prompts)]
    captions = [" ".join(sentences[first : first + 1 + first % 5]) for first in range(bench.prompts)]
    words = [" ".join(sentence.split()[:4]) for sentence in sentences]
    for prompts in (captions, words):
        lengths = [len(tokens) for tokens in tokenizer(prompts)["input_ids"]]
        name = f"T5 ({sizes['num_layers']} layers of {sizes['d_model']}), {min(lengths)} to {max(lengths)} tokens"
        baseline, *others = bench.fastest(*(partial(embed, way, prompts) for way in (alone, *ways.values())))
        for way, seconds in zip(ways, others, strict=True):
            row(f"{name}, {way}", "each text alone, float32", seconds, baseline, len(prompts), "prompts/s")


def rle(bench: Bench) -> None:
    """Encode a mask of a clip, and decode a window of it."""
    rows, columns = np.ogrid[: bench.height, : bench.width]
    centres = np.linspace(0.2 * bench.width, 0.8 * bench.width, CLIP_FRAMES)
    radius = bench.height / 4
    mask = np.stack([(rows - 2 * radius) ** 2 + (columns - centre) ** 2 < radius**2 for centre in centres])
    column = np.asfortranarray(mask.reshape(-1, 1).astype(np.uint8))
    entry = encode_clip_mask(mask)
    assert entry["data"]["counts"] == coco.encode(column)["counts"]
    ours, theirs = bench.fastest(lambda: encode_clip_mask(mask), lambda: coco.encode(column))
    row(f"RLE, encoding {CLIP_FRAMES} frames", "pycocotools", ours, theirs, CLIP_FRAMES, "frames/s")
    start = (CLIP_FRAMES - WINDOW) // 2

    def whole() -> np.ndarray:
        decoded = np.asarray(coco.decode(entry["data"])).reshape(mask.shape)
        return decoded[start : start + WINDOW].astype(bool)

    assert np.array_equal(decode_clip_mask(entry, start, WINDOW), whole())
    ours, theirs = bench.fastest(lambda: decode_clip_mask(entry, start, WINDOW), whole)
    name = f"RLE, decoding {WINDOW} of {CLIP_FRAMES} frames"
    row(name, "pycocotools, the whole clip", ours, theirs, WINDOW, "frames/s")


PARTS = {"decoding": decoding, "edge_vis": edge_vis, "t5": t5, "rle": rle}


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT of the clip")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))
    versions = f"PyTorch {torch.__version__}, OpenCV {cv2.__version__}, PyAV {av.__version__}"
    print(f"{os.cpu_count()} cores, {versions}; a clip of {CLIP_FRAMES} frames of {arguments.size}")
    print("| what | baseline | baseline, a second | ours, a second | unit | ratio |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](
                Bench(
                    width=width,
                    height=height,
                    turns=arguments.turns,
                    prompts=arguments.prompts,
                    folder=Path(folder),
                )
            )


if __name__ == "__main__":
    main()
