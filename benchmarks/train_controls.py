"""Seconds that the edge and vis controls of a sample take, in the loader and on the device, against a per-frame loop.

Two loader workers keep up with a step if one sample takes them no longer than two steps; what the device does is added
to the step. vis is measured over draws of the recipe's ranges, and for the heaviest of them. The baseline computes the
same pictures by OpenCV and Pillow, frame by frame in one process; of vis it is timed for a few frames and multiplied,
since the whole window takes minutes. Reading the video is not counted; benchmarks/data.py has it.

python benchmarks/train_controls.py --device cuda [--sources 1280x720 1920x1080] [--frames 121] [--draws 12]
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from worldtune.controls.blurs import Bilateral, Gaussian
from worldtune.controls.edge import Edge
from worldtune.controls.on_device import finish
from worldtune.controls.protocol import Controlled, ControlSource
from worldtune.controls.shrink import shrink, shrink_target
from worldtune.controls.vis import Degradation, StepsLeft, draw_degradation, smaller, split
from worldtune.media.geometry import fit
from worldtune.recipe.schema import Control, VisControl
from worldtune.transfer1.hints import unfinished_hint

SIZE_WH = (1280, 704)
ASPECT = "16:9"
STEP_SECONDS = 4.0
LOADERS = 2
LIGHT = Degradation(
    blur_downscale=1, blurs=(Bilateral(diameter=5, sigma_color=100, sigma_space=50, iterations=1),), downscale=4
)
HEAVIEST = Degradation(
    blur_downscale=1,
    blurs=(Bilateral(diameter=49, sigma_color=299, sigma_space=149, iterations=3), Gaussian(size=29, sigma=14.5)),
    downscale=17,
)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one sample."""

    baseline: float
    loader: float
    device: float

    def line(self, name: str) -> str:
        """Return the row of the table."""
        keeps_up = self.loader <= LOADERS * STEP_SECONDS and self.device < STEP_SECONDS
        ratio = self.baseline / (self.loader + self.device)
        return (
            f"| {name} | {self.baseline:.2f} | {self.loader:.2f} | {self.device:.2f} | {ratio:.1f} | "
            f"{self.loader / LOADERS:.2f} | {'yes' if keeps_up else 'no'} |"
        )


def scene(num_frames: int, width: int, height: int) -> np.ndarray:
    """Return uint8 [T, H, W, 3]: soft colours that move, with noise, since edges take longer in noise."""
    rng = np.random.default_rng(0)
    wide = cv2.resize(rng.integers(0, 256, (24, 60, 3), dtype=np.uint8), (width + num_frames, height))
    noise = rng.integers(-6, 7, wide.shape, dtype=np.int16)
    wide = np.clip(wide + noise, 0, 255).astype(np.uint8)
    return np.stack([wide[:, first : first + width] for first in range(num_frames)])


def timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the seconds of a call, with what it left the device to do."""
    start = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def edge_times(frames: np.ndarray) -> Times:
    """Measure the edge control."""
    config = Control(kind="edge")
    source = ControlSource(frames=frames, start=0, file=None, size_wh=SIZE_WH)
    source_wh = (frames.shape[2], frames.shape[1])

    def loop() -> None:
        target_wh = shrink_target(frames)
        edges = [cv2.Canny(np.ascontiguousarray(shrink(frame, target_wh)), 60, 160) for frame in frames]
        fit(np.stack([np.stack([edge] * 3, axis=-1) for edge in edges]), SIZE_WH, source_wh=source_wh)

    def loader() -> None:
        hint = Edge().training(source, config, np.random.default_rng(0)).hint
        fit(hint, SIZE_WH, source_wh=source_wh)

    return Times(baseline=timed(loop), loader=timed(loader), device=0.0)


def vis_frame(frame: np.ndarray, degradation: Degradation) -> np.ndarray:
    """Return one frame (uint8 [H, W, 3]) degraded and fitted, uint8 [Ht, Wt, 3]."""
    small = shrink(frame, shrink_target(frame[None]))
    height, width = small.shape[:2]
    inner_wh = smaller((width, height), degradation.blur_downscale)
    blurred = cv2.resize(small, inner_wh, interpolation=cv2.INTER_AREA)
    for blur in degradation.blurs:
        blurred = blur.apply(blurred)
    image = Image.fromarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR))
    image = image.resize(smaller((width, height), degradation.downscale), Image.Resampling.BICUBIC)
    hint = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]
    return fit(hint, SIZE_WH, source_wh=(frame.shape[1], frame.shape[0])).frames[0]


def vis_times(frames: np.ndarray, degradation: Degradation, baseline_frames: int, device: torch.device) -> Times:
    """Measure the vis control at one degradation."""
    few = frames[:baseline_frames]
    baseline = timed(lambda: [vis_frame(frame, degradation) for frame in few]) * len(frames) / len(few)
    sample: dict[str, torch.Tensor] = {}

    def loader() -> None:
        hint, steps = split(frames, degradation)
        controlled = Controlled(video=frames[:0], hint=hint, steps_left=steps.to_array())
        sample.update(unfinished_hint([controlled], ASPECT))

    loader_seconds = timed(loader)
    image_size = fit(few[:1], SIZE_WH).image_size
    on_device = sample["vis_frames"].to(device)
    steps = StepsLeft.from_values(sample["vis_steps"][0].tolist())

    def work() -> None:
        finish(on_device, steps, image_size[2:], image_size[:2], compiled=device.type == "cuda")

    timed(lambda: None, device)
    return Times(baseline=baseline, loader=loader_seconds, device=timed(work, device))


def mean(times: Sequence[Times]) -> Times:
    """Return the mean of each kind of seconds."""
    return Times(
        baseline=float(np.mean([one.baseline for one in times])),
        loader=float(np.mean([one.loader for one in times])),
        device=float(np.mean([one.device for one in times])),
    )


def main() -> None:
    """Print a table: a row for each control and size of the source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where the bilateral filter runs")
    parser.add_argument("--sources", nargs="+", default=["1280x720", "1920x1080"], help="WIDTHxHEIGHT of clips of 16:9")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--draws", type=int, default=12, help="degradations that vis is measured over")
    parser.add_argument("--baseline-frames", type=int, default=1, help="frames of vis that the baseline computes")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    # A loader process has one thread of PyTorch's, and as many of OpenCV's as there are cores.
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    print(f"{name}, {os.cpu_count()} cores, OpenCV {cv2.__version__} with {cv2.getNumThreads()} threads, ", end="")
    print(f"PyTorch {torch.__version__}; {arguments.frames} frames at {SIZE_WH[1]}x{SIZE_WH[0]}")
    rng = np.random.default_rng(1)
    draws = [draw_degradation(VisControl(), rng) for _ in range(arguments.draws)]
    warm = scene(2, 320, 180)
    start = time.perf_counter()
    vis_times(warm, LIGHT, 1, device)
    print(f"first call on the device, with compilation: {time.perf_counter() - start:.1f} s")
    print(
        "| control, source | per-frame loop, s | loader, s | device, s | ratio | s a step of two loaders | keeps up |"
    )
    print("|---|---|---|---|---|---|---|")
    for size in arguments.sources:
        width, height = (int(side) for side in size.split("x"))
        frames = scene(arguments.frames, width, height)
        print(edge_times(frames).line(f"edge, {size}"), flush=True)
        times = [vis_times(frames, one, arguments.baseline_frames, device) for one in draws]
        print(mean(times).line(f"vis, mean of {len(draws)} draws, {size}"), flush=True)
        print(vis_times(frames, HEAVIEST, 1, device).line(f"vis, heaviest draw, {size}"), flush=True)
    if device.type == "cuda":
        print(f"peak memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
