"""Samples of an export: controls, ground truth and sample side by side, as videos and pictures."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldtune.checkpoint.splitting import MANIFEST_SUFFIX, join_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.common.progress import progress
from worldtune.common.versions import stage_version
from worldtune.dataset.clips import load_dataset
from worldtune.parallel.mesh import sample_group
from worldtune.recipe.schema import Recipe, Sampling
from worldtune.training.manifest import check_trained
from worldtune.training.task import Sample
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.denoiser import DTYPES, Denoiser, build_denoiser, single_process_mesh, single_process_recipe
from worldtune.transfer1.export import WEIGHTS, check_base, read_export, read_exported, split_file
from worldtune.transfer1.objective import given_frames
from worldtune.transfer1.pictures import decode_frames, views_stacked, write_comparison
from worldtune.transfer1.sampler import draw_latents
from worldtune.transfer1.task import LatentEncoder, encode_sample
from worldtune.transfer1.tokenizer import VideoTokenizer

SAMPLES_FORMAT = 1
SAMPLES = "samples.json"
logger = logging.getLogger(__name__)


def draw_run(
    run_dir: Path,
    output_dir: Path,
    *,
    sampling: Sampling,
    device: torch.device,
    num_given_frames: int,
    checkpoints_dir: Path,
    datasets_dir: Path,
    expected: str | None = None,
) -> None:
    """Draw held-out clips from the export of a run; each gives `<clip_id>.mp4` and `<clip_id>.png`.

    `samples.json` is written last. Where it says that the same weights were drawn in the same way, nothing is done.

    Args:
        run_dir: results/<run>, with its model/.
        output_dir: where the files go.
        sampling: steps, guidance, noise levels, seed, number of clips.
        device: where to run, alone.
        num_given_frames: latent frames of the ground truth that are given to the model.
        checkpoints_dir: where base checkpoint and tokenizer lie.
        datasets_dir: where the run's dataset lies.
        expected: `trained_fingerprint` of the recipe whose weights are wanted; None takes any.

    Raises:
        WorldtuneError: export, base, tokenizer or dataset are missing or do not belong together.
    """
    model_dir = run_dir / "model"
    recipe, provenance = read_export(model_dir)
    check_trained(provenance, expected, model_dir / "provenance.json", run_dir)
    if num_given_frames and not recipe.takes_given_frames:
        raise WorldtuneError(f"{run_dir.name} has networks that take no given frames. Leave --given-frames at 0.")
    recipe = single_process_recipe(recipe)
    note = {
        "format": SAMPLES_FORMAT,
        # Of the report's stage, to which this module belongs: the rule runs again where it is raised.
        "version": stage_version("evaluate/report.py"),
        "run": run_dir.name,
        "identity": provenance["identity"],
        "step": provenance["step"],
        "ema_rate": provenance["ema_rate"],
        # Identity and step are the same where weights were trained or exported again by changed code.
        "weights": {name: sha256 for name, sha256 in provenance["files"].items() if name.startswith(WEIGHTS)},
        "dataset": provenance["dataset"],
        "num_given_frames": num_given_frames,
        **({"vis_preset": recipe.control.vis.evaluation_preset} if "vis" in recipe.control.kinds else {}),
        **sampling.model_dump(mode="json"),
    }
    if _is_drawn(output_dir, note):
        logger.info("%s holds these samples already", output_dir)
        return
    dataset = load_dataset(datasets_dir / recipe.data.dataset)
    clips = ClipDataset(dataset, recipe)
    if dataset.digest != provenance["dataset"]["digest"]:
        logger.warning("dataset %s is not as it was when the run was trained", dataset.name)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / SAMPLES).unlink(missing_ok=True)
    chosen = clips.held_out_clips[: sampling.num_clips]
    denoiser, encoder = _load(model_dir, recipe, provenance, device, checkpoints_dir)
    entries = []
    for clip in progress(chosen, "samples"):
        started = time.monotonic()
        sample = clips.evaluation_sample(clip)
        drawn = draw_sample(denoiser, encoder, sample, recipe, sampling=sampling, num_given_frames=num_given_frames)
        assert isinstance(sample["hint"], Tensor)
        shown = (*sample["hint"].split(3), sample["video"], drawn)
        columns = [views_stacked(video, recipe.num_views) for video in shown]
        files = write_comparison(output_dir / clip.clip_id, columns, float(sample["fps"]))
        entries.append(
            {
                "clip_id": clip.clip_id,
                "caption": clip.caption(dataset.root),
                "seconds": round(time.monotonic() - started, 2),
                **files,
            }
        )
    write_json(output_dir / SAMPLES, {**note, "clips": entries})


def _is_drawn(output_dir: Path, note: Mapping[str, Any]) -> bool:
    path = output_dir / SAMPLES
    if not path.is_file():
        return False
    found = read_json(path)
    files = [output_dir / clip[kind] for clip in found.get("clips", []) for kind in ("video", "grid")]
    return all(found.get(key) == value for key, value in note.items()) and all(file.is_file() for file in files)


def _load(
    model_dir: Path, recipe: Recipe, provenance: Mapping[str, Any], device: torch.device, checkpoints_dir: Path
) -> tuple[Denoiser, LatentEncoder]:
    degree = provenance["recipe"]["parallel"]["tensor"]
    split = split_file(recipe.checkpoints.base, degree, checkpoints_dir)
    check_base(split, provenance)
    base = join_checkpoint(split.parent, split.name.removesuffix(MANIFEST_SUFFIX), degree)
    mesh = single_process_mesh(device)
    built = build_denoiser(recipe, base, read_exported(model_dir), mesh, device)
    dtype = DTYPES[recipe.training.precision]
    tokenizer = VideoTokenizer(checkpoints_dir / recipe.checkpoints.tokenizer, recipe.data.num_frames, device, dtype)
    return built.denoiser, LatentEncoder(tokenizer, sample_group(mesh), device, recipe)


def draw_sample(
    denoiser: Denoiser,
    encoder: LatentEncoder,
    sample: Sample,
    recipe: Recipe,
    *,
    sampling: Sampling,
    num_given_frames: int,
) -> Tensor:
    """Return the drawn frames of one evaluation sample, uint8 [3, T, H, W], views stacked along T."""
    latents, conditions = encode_sample(sample, encoder, recipe)
    indicator_t = given_frames(latents.shape[2], num_given_frames, config=recipe.objective, num_views=recipe.num_views)
    conditions = replace(conditions, indicator_bt=indicator_t[None].to(encoder.device))
    drawn = draw_latents(denoiser, conditions, config=sampling, given_bcthw=latents)
    return decode_frames(encoder.tokenizer, drawn / denoiser.sigma_data)
