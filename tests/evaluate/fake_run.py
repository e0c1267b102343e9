"""A made-up run on disk, as the training and sampling scripts leave one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from worldtune.common.files import write_json
from worldtune.media.video import write_video

PREVIEW_STEPS = (0, 40, 80)
SIGMAS = (0.2, 1.0, 5.0, 20.0)
CLIPS = ("0a" * 8, "0b" * 8, "0c" * 8)


def make_run(root: Path, num_steps: int = 60, *, name: str = "run", scale: float = 1.0, **recipe: object) -> Path:
    """Write results/<name>, datasets/set and a Snakefile below `root` and return the run's folder.

    `scale` multiplies the held-out losses; `recipe` goes into the manifest.
    """
    rng = np.random.default_rng(0)
    (root / "Snakefile").touch()
    run = root / "results" / name
    attempt = run / "attempts" / "abcd"
    attempt.mkdir(parents=True)
    rows = []
    for step in range(1, num_steps + 1):
        parts = {"data_s": 0.02, "forward_s": 0.3, "backward_s": 0.5, "optimizer_s": 0.05}
        loss = float(np.exp(rng.normal() * 0.5 - step / 60))
        rows.append(
            {
                "step": step,
                "loss": loss,
                "edm_loss": loss,
                "grad_norm": float(np.exp(rng.normal() * 0.3)),
                "learning_rate": min(step / 20, 1) * 1e-3,
                "step_s": sum(parts.values()) + 0.01,
                **parts,
                "tokens_per_s": 800.0 + float(rng.normal() * 20),
                "peak_memory_gb": 1.5,
                "clip_ids": ["0d" * 8],
                "time": 0.0,
            }
        )
    (attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 61, "lo')
    validation = []
    for step in sorted({0, 20, 40, num_steps}):
        for sigma in SIGMAS:
            for clip in CLIPS:
                base = scale / sigma**0.5 * (1.2 + 0.1 * CLIPS.index(clip)) * float(np.exp(-step / 200))
                gain = 1 - 0.1 * step / num_steps
                validation.append(
                    {"step": step, "sigma": sigma, "clip_id": clip, "control": "own", "loss": base * gain}
                )
                validation.append({"step": step, "sigma": sigma, "clip_id": clip, "control": "other", "loss": base})
    (attempt / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in validation))
    for step in PREVIEW_STEPS:
        make_preview(attempt, step)
    write_json(
        run / "manifest.json",
        {
            "format": 2,
            "run": name,
            "identity": "abcd",
            "attempt": "attempts/abcd",
            "final_step": num_steps,
            "recipe_fingerprint": "1111",
            "checkpoint": "checkpoints/step_000000060",
            "dataset": {"name": "set", "digest": "0" * 64},
            "checkpoints": {"base": {"path": "a/b.pt", "sha256": "1" * 64}},
            "hardware": {"device": "cpu", "processes": 1},
            "torch": "2",
            "peak_memory_gb": 1.5,
            "median_step_s": 0.88,
            "recipe": recipe,
        },
    )
    dataset = root / "datasets" / "set"
    clips = [
        {
            "clip_id": clip,
            "source_key": f"{clip[:2]}.mp4",
            "split": "held_out",
            "status": "ok",
            "reason": "",
            "num_frames": 33,
            "width": 320,
            "height": 192,
            "fps": 24.0,
            "num_tokens": 12,
        }
        for clip in CLIPS
    ]
    clips.append({**clips[0], "clip_id": "0e" * 8, "split": None, "status": "unusable", "reason": "0 bytes"})
    dataset.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(clips).to_parquet(dataset / "clips.parquet")
    summary = {"format": 1, "digest": "0" * 64, "num_clips": 3, "splits": {"train": 0, "held_out": 3}}
    write_json(dataset / "dataset.json", summary)
    for clip in CLIPS:
        (dataset / "metas").mkdir(exist_ok=True)
        (dataset / "metas" / f"{clip}.txt").write_text(f"A clip <{clip}> of a ball.")
    samples = run / "samples"
    samples.mkdir()
    width, height, gap = 80, 48, 4
    frames = rng.integers(0, 255, (5, height, 3 * width, 3), dtype=np.uint8)
    grid = rng.integers(0, 255, (3 * height + 2 * gap, 3 * width + 2 * gap, 3), dtype=np.uint8)
    write_video(samples / "x.mp4", frames, 24.0)
    from PIL import Image

    Image.fromarray(grid).save(samples / "x.png")
    clip_entry: dict[str, object] = {"clip_id": CLIPS[0], "caption": "A <b>", "video": "x.mp4", "grid": "x.png"}
    clip_entry |= {"width": width, "height": height, "num_frames": 5}
    note = {"format": 1, "step": num_steps, "num_steps": 35, "guidance": 7.0, "seed": 1, "clips": [clip_entry]}
    write_json(samples / "samples.json", note)
    return run


def make_preview(attempt: Path, step: int) -> None:
    """Write the preview of a step: two guidances of one clip, whose edges become better."""
    rng = np.random.default_rng(step)
    folder = attempt / "previews" / f"step_{step:09d}"
    write_video(folder / "x.mp4", rng.integers(0, 255, (5, 48, 4 * 80, 3), dtype=np.uint8), 24.0)
    from PIL import Image

    Image.fromarray(rng.integers(0, 255, (3 * 48 + 8, 4 * 80 + 12, 3), dtype=np.uint8)).save(folder / "x.png")
    scores = {guidance: {"edge_f1": 0.1 + step / 200 + guidance / 100, "edge_f1_other": 0.1} for guidance in (0.0, 3.0)}
    clip = {"clip_id": CLIPS[0], "video": "x.mp4", "grid": "x.png", "num_frames": 5, "height": 48, "width": 80}
    clip |= {"fps": 24.0, "scores": {f"{guidance:g}": values for guidance, values in scores.items()}}
    columns = ["control", "ground truth", "guidance 0", "guidance 3"]
    note = {"format": 1, "step": step, "columns": columns, "guidances": [0.0, 3.0], "num_steps": 20, "clips": [clip]}
    write_json(folder / "previews.json", note)
    rows = [{"step": step, "clip_id": CLIPS[0], "guidance": guidance, **values} for guidance, values in scores.items()]
    with open(attempt / "previews.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
