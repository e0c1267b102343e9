"""The trained control branch as files that stand by themselves: safetensors, original keys, provenance, model card.

    control.safetensors           averaged weights, names `net.*` (several files and an index beyond 5 GB)
    raw/control.safetensors       the weights of the last step
    <kind>_control.pt             averaged weights and uncertainty head as in the original format
    config.json  provenance.json  README.md

The files are built in a folder of their own beside the attempt's `export/`, which they replace, and are hard-linked
into `results/<run>/model`. One process at a time exports a run: `results/<run>/.export/` holds its lease.
"""

import importlib.metadata
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from worldtune.checkpoint.reading import INDEX_SUFFIX, read_checkpoint
from worldtune.checkpoint.splitting import MANIFEST_SUFFIX, read_shard
from worldtune.common.disk import disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import copy_file, link_or_copy, read_json, sha256_file, share, write_json, write_text
from worldtune.common.versions import stage_version
from worldtune.recipe.schema import LATENT_CHANNELS, Recipe
from worldtune.training.lease import held_lease
from worldtune.training.manifest import MANIFEST, read_manifest
from worldtune.training.random import generator
from worldtune.training.state import ema_group, read_weights
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import load_network, own_part
from worldtune.transfer1.model_card import model_card

VERSION = 1
"""Raised when a change of the export should make the existing ones anew."""

EXPORT_FORMAT = 1
MAX_FILE_BYTES = 5 * 10**9
WEIGHTS = "control"
RAW = "raw"
PARTIAL = ".partial"
LEASE = ".export"
PACKAGES = ("worldtune", "torch", "numpy", "safetensors", "av", "opencv-python-headless", "transformers", "snakemake")
CHAIN = (
    ("ingest", "dataset/ingest.py", "datasets/{dataset}/manifests/ingest"),
    ("captions", "dataset/captions.py", "datasets/{dataset}/manifests/captions"),
    ("t5", "dataset/t5.py", "datasets/{dataset}/manifests/t5"),
    ("controls", "dataset/controls.py", "datasets/{dataset}/manifests/controls-{kind}"),
    ("validate", "dataset/validate.py", "datasets/{dataset}/dataset.json"),
    ("split_checkpoint", "checkpoint/splitting.py", "{base_split}"),
    ("load_report", "", "{run_dir}/load_report.json"),
    ("dataset_report", "dataset/fitting.py", "{run_dir}/dataset_report.json"),
    ("train", "training/trainer.py", "{run_dir}/manifest.json"),
    ("export", "transfer1/export.py", "{run_dir}/model"),
)
"""The rules that lead to a model: name, module with its VERSION, what it made."""
MADE_CAPTIONS = ("make_captions", "dataset/make_captions.py", "datasets/{dataset}/manifests/make_captions")
"""Stands in the place of captions where a model made some."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run on disk."""

    run_dir: Path
    """results/<run>."""
    manifest: dict[str, Any]
    """results/<run>/manifest.json."""
    recipe: Recipe
    """As it was resolved when the manifest was written."""

    @property
    def attempt(self) -> Path:
        """The attempt's folder."""
        return self.run_dir / self.manifest["attempt"]

    @property
    def checkpoint(self) -> Path:
        """The last training checkpoint."""
        return self.attempt / self.manifest["checkpoint"]


def load_trained_run(run_dir: Path, *, expected: str | None = None) -> TrainedRun:
    """Read what a finished run left.

    Args:
        run_dir: results/<run>.
        expected: see `read_manifest`.

    Raises:
        WorldtuneError: the run is not finished, or its files are of another version or recipe.
    """
    manifest = read_manifest(run_dir, expected)
    try:
        recipe = Recipe.model_validate(manifest.get("recipe"))
    except ValidationError as error:
        path = run_dir / MANIFEST
        raise WorldtuneError(
            f"{path} holds no recipe of this version: {error}. Delete it and run the training rule again."
        ) from error
    return TrainedRun(run_dir=run_dir, manifest=manifest, recipe=recipe)


def export_run(run_dir: Path, *, checkpoints_dir: Path, datasets_dir: Path, expected: str | None = None) -> None:
    """Export the last checkpoint of a finished run and verify what was written.

    It waits for another export of the run, such as one whose Snakemake was killed.

    Args:
        run_dir: results/<run>.
        checkpoints_dir: where the base checkpoint lies, for the uncertainty head.
        datasets_dir: for the provenance.
        expected: `trained_fingerprint` of the recipe whose weights are wanted; None takes any.

    Raises:
        WorldtuneError: something is missing or of another recipe, or an exported tensor differs from the checkpoint's.
        TemporaryError: another process took over, since this one was silent for too long.
    """
    # Before the lease, so that a misspelt run gets no folder; again under it, since waiting may have taken long.
    read_manifest(run_dir, expected)
    with held_lease(run_dir / LEASE) as lease:
        run = load_trained_run(run_dir, expected=expected)
        for abandoned in run.attempt.glob(f"export*{PARTIAL}"):
            shutil.rmtree(abandoned, ignore_errors=True)
        partial = run.attempt / f"export.{uuid.uuid4().hex}{PARTIAL}"
        try:
            partial.mkdir()
            _build(run, partial, checkpoints_dir=checkpoints_dir, datasets_dir=datasets_dir)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        lease.check()
        final = run.attempt / "export"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _link(final, run_dir / "model")


def _build(run: TrainedRun, folder: Path, *, checkpoints_dir: Path, datasets_dir: Path) -> None:
    """Write and verify all files of an export in an empty folder."""
    rate = run.recipe.ema.rates[0]
    averaged = named_weights(read_weights(run.checkpoint, rate), run.recipe)
    base_split = split_file(run.recipe.checkpoints.base, run.recipe.parallel.tensor, checkpoints_dir)
    check_base(base_split, run.manifest)
    logvar = read_logvar(base_split, run.recipe.parallel.tensor)

    (folder / RAW).mkdir()
    header = _header(run, rate)
    provenance = _provenance(run, rate, base_split, datasets_dir)
    write_weights(folder, averaged, header)
    original = folder / f"{run.recipe.control.label}_control.pt"
    # Given a path, torch.save does not say why it cannot write.
    with disk_errors_named(original), open(original, "wb") as file:
        torch.save({**averaged, **logvar}, file)
    del averaged
    raw = named_weights(read_weights(run.checkpoint, None), run.recipe)
    write_weights(folder / RAW, raw, {**header, "weights": "raw"})
    del raw
    write_json(folder / "config.json", _config(run))
    verified = verify_export(folder, run, logvar)
    provenance |= {"verified": verified, "files": _hashes(folder)}
    write_json(folder / "provenance.json", provenance)
    write_text(folder / "README.md", model_card(run.recipe, provenance))


def split_file(checkpoint: str, degree: int, checkpoints_dir: Path) -> Path:
    """Return where the split file of a checkpoint (a path below checkpoints/) lies."""
    source = checkpoints_dir / checkpoint
    return source.parent / f"checkpoints_tp_{degree}" / f"{source.stem}{MANIFEST_SUFFIX}"


def check_base(split: Path, record: Mapping[str, Any]) -> None:
    """Check that a split is one of the base that a model was trained on.

    Args:
        split: the split file.
        record: the run's manifest or the export's provenance.

    Raises:
        WorldtuneError: it is of another checkpoint, or missing.
    """
    found, expected = read_json(split)["source_sha256"], record["checkpoints"]["base"]["sha256"]
    if found != expected:
        raise WorldtuneError(
            f"{split} was made from a checkpoint with SHA-256 {found}, but the model was trained on {expected}. Fetch "
            "and split that one, or train the run again."
        )


def read_logvar(base_split: Path, degree: int) -> dict[str, Tensor]:
    """Return the uncertainty head of the base, by its original names; every rank's file has it whole."""
    pieces = read_shard(base_split.parent, base_split.name.removesuffix(MANIFEST_SUFFIX), degree, 0)
    base = own_part(pieces, control=False)
    return {name: tensor.clone() for name, tensor in base.items() if name.startswith("logvar.")}


def named_weights(weights: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Return the trained weights and what a checkpoint of the network has beside them, by their original names."""
    with torch.device("meta"):
        length = len(ControlNetwork(recipe.network.control, recipe.network.rope_angles).pos_embedder.seq)
    counter = {"pos_embedder.seq": torch.arange(length, dtype=torch.float32)}
    return {f"net.{name}": tensor.contiguous() for name, tensor in sorted({**weights, **counter}.items())}


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], header: dict[str, str], *, max_file_bytes: int = MAX_FILE_BYTES
) -> None:
    """Write tensors as one safetensors file, or as several with an index beyond `max_file_bytes`."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > max_file_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        _save(parts[0], folder / f"{WEIGHTS}.safetensors", header)
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"{WEIGHTS}-{number:05d}-of-{len(parts):05d}.safetensors"
        _save(part, folder / file, header)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(
        folder / f"{WEIGHTS}{INDEX_SUFFIX}", {"metadata": {"total_size": total, **header}, "weight_map": weight_map}
    )


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file whose bytes are a function of its content."""
    with disk_errors_named(path):
        save_file(tensors, path, metadata=header)
    share(path)
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(length))
        # The library writes the metadata in an order of chance.
        ordered = {"__metadata__": dict(sorted(content.pop("__metadata__").items())), **content}
        encoded = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(encoded) != length:
            raise WorldtuneError(f"{path} has a header that cannot be rewritten. Export with safetensors as locked.")
        file.seek(8)
        file.write(encoded)


def read_exported(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an export's folder by name.

    Raises:
        WorldtuneError: a file is missing or damaged.
    """
    index = folder / f"{WEIGHTS}{INDEX_SUFFIX}"
    return read_checkpoint(index if index.is_file() else folder / f"{WEIGHTS}.safetensors")


def verify_export(folder: Path, run: TrainedRun, logvar: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare the files with the training checkpoint: each tensor, and the output of a network filled from each.

    Args:
        folder: the export.
        run: the finished run.
        logvar: the uncertainty head of the base checkpoint.

    Returns:
        What was compared, for the provenance.

    Raises:
        WorldtuneError: a tensor is missing, extra or different, or the outputs differ.
    """
    averaged = named_weights(read_weights(run.checkpoint, run.recipe.ema.rates[0]), run.recipe)
    exported = read_exported(folder)
    _compare(f"{folder / WEIGHTS}.safetensors", exported, averaged)
    original = folder / f"{run.recipe.control.label}_control.pt"
    _compare(str(original), read_checkpoint(original), {**averaged, **logvar})
    from_export = _outputs(run.recipe, exported)
    from_checkpoint = _outputs(run.recipe, averaged)
    _compare(f"outputs of a network filled from {folder}", from_export, from_checkpoint)
    raw = named_weights(read_weights(run.checkpoint, None), run.recipe)
    _compare(f"{folder / RAW / WEIGHTS}.safetensors", read_exported(folder / RAW), raw)
    return {
        "tensors_equal": len(averaged),
        "raw_tensors_equal": len(raw),
        "original_tensors_equal": len(averaged) + len(logvar),
        "outputs_equal": len(from_checkpoint),
    }


def _compare(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    differing = sorted(found.keys() ^ expected.keys())
    if not differing:
        differing = [name for name in sorted(expected) if not _bit_equal(found[name], expected[name])]
    if differing:
        raise WorldtuneError(
            f"The export is wrong: {what} differs from the training checkpoint in {len(differing)} tensors, the first "
            f"are {', '.join(differing[:5])}. Nothing was published; check the disk and export again."
        )


def _bit_equal(found: Tensor, expected: Tensor) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    # As bytes: NaN equals itself, and 0.0 is not -0.0.
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    return torch.equal(as_bytes[0], as_bytes[1])


@torch.no_grad()
def _outputs(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return everything that a float32 network with these weights computes on a small made-up input."""
    config = recipe.network.control
    with torch.device("meta"):
        network = ControlNetwork(config, recipe.network.rope_angles)
    network = network.to_empty(device="cpu")
    load_network(network, weights)
    stream = generator(0, "verify_export")
    frames, side = 2 * config.patch_temporal * config.n_views, 4 * config.patch_spatial

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream)

    mask_channels = network.num_given_channels - LATENT_CHANNELS
    features: dict[str, Tensor] = {}
    residuals = network(
        noise(1, LATENT_CHANNELS, frames, side, side),
        noise(1),
        noise(1, 8 * config.n_views, config.crossattn_emb_channels),
        hint=noise(1, LATENT_CHANNELS, frames, side, side),
        padding_mask=torch.zeros(1, 1, side, side),
        fps=torch.tensor([24.0]),
        condition_video_input_mask=noise(1, mask_channels, frames, side, side) if mask_channels else None,
        frame_repeat=noise(1, config.n_views) if config.add_repeat_frame_embedding else None,
        features=features,
    )
    return {**{f"feature.{name}": value for name, value in features.items()}, **residuals}


def _header(run: TrainedRun, rate: float) -> dict[str, str]:
    manifest = run.manifest
    return {
        "format": "pt",
        "worldtune_format": str(EXPORT_FORMAT),
        "run": run.run_dir.name,
        "identity": manifest["identity"],
        "control": run.recipe.control.label,
        "step": str(manifest["final_step"]),
        "weights": ema_group(rate),
        "base": manifest["checkpoints"]["base"]["path"],
        "base_sha256": manifest["checkpoints"]["base"]["sha256"],
        "dataset_digest": manifest["dataset"]["digest"],
    }


def _config(run: TrainedRun) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "format": EXPORT_FORMAT,
        "family": recipe.experiment.family,
        "identity": run.manifest["identity"],
        "control": recipe.control.label,
        "network": recipe.network.model_dump(mode="json"),
        "objective": {"sigma_data": recipe.objective.sigma_data},
        "num_frames": recipe.data.num_frames,
        "resolution": recipe.data.resolution,
    }


def _provenance(run: TrainedRun, rate: float, base_split: Path, datasets_dir: Path) -> dict[str, Any]:
    manifest, recipe = run.manifest, run.recipe
    places = {
        "dataset": recipe.data.dataset,
        "kind": recipe.control.label,
        "base_split": str(base_split),
        "run_dir": str(run.run_dir),
    }
    summary = _dataset_summary(datasets_dir / manifest["dataset"]["name"], manifest["dataset"]["digest"])
    captions_made = bool(summary.get("captions_made_by"))
    chain = [MADE_CAPTIONS if captions_made and link[0] == "captions" else link for link in CHAIN]
    return {
        "format": EXPORT_FORMAT,
        "run": run.run_dir.name,
        "identity": manifest["identity"],
        "attempt": manifest["attempt"],
        "checkpoint": manifest["checkpoint"],
        "step": manifest["final_step"],
        "recipe_fingerprint": manifest["recipe_fingerprint"],
        "ema_rate": rate,
        "recipe": recipe.model_dump(mode="json"),
        "dataset": manifest["dataset"],
        "checkpoints": manifest["checkpoints"],
        "git": manifest.get("git", {}),
        "hardware": manifest["hardware"],
        "packages": {name: _version(name) for name in PACKAGES},
        "metrics": {
            key: manifest[key]
            for key in ("held_out_loss", "median_step_s", "tokens_per_s", "peak_memory_gb", "skipped_steps")
            if key in manifest
        },
        "chain": [
            {"rule": rule, "version": stage_version(module) if module else 1, "made": made.format_map(places)}
            for rule, module, made in chain
        ],
        "dataset_summary": summary,
    }


def _dataset_summary(dataset: Path, digest: str) -> dict[str, Any]:
    """Return the summary of the dataset that was trained on; empty where the dataset is gone or another by now."""
    path = dataset / "dataset.json"
    summary = read_json(path) if path.is_file() else {}
    if summary and summary.get("digest") != digest:
        # The weights are what they are; only the clips behind them can no longer be told.
        logger.warning(
            "%s has digest %s, but the run was trained on %s: the export goes without a summary of its dataset",
            *(path, summary.get("digest"), digest),
        )
        return {}
    return summary


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _link(source: Path, target: Path) -> None:
    """Make `target` hold hard links of the files in `source`, and no other file but what Snakemake keeps there."""
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for file in files:
        link_or_copy(source / file, target / file)
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.relative_to(target) not in files and not path.name.startswith(".snakemake"):
            path.unlink()


def take_export(run_dir: Path, target: Path, *, expected: str | None = None) -> None:
    """Copy the control branch of a run's export to where other runs find the checkpoint that they start from.

    Args:
        run_dir: results/<run>.
        target: the file to write: averaged weights and uncertainty head by their original names.
        expected: see `read_manifest`.

    Raises:
        WorldtuneError: the run has no export, its weights are of another attempt, or the file is not as it was written.
    """
    manifest = read_manifest(run_dir, expected)
    model = run_dir / "model"
    recipe, provenance = read_export(model)
    if (provenance["identity"], provenance["step"]) != (manifest["identity"], manifest["final_step"]):
        raise WorldtuneError(f"{model} is of another attempt than {run_dir / MANIFEST}. Export the run again.")
    source = model / f"{recipe.control.label}_control.pt"
    recorded = provenance["files"].get(source.name)
    if not source.is_file() or sha256_file(source) != recorded:
        raise WorldtuneError(f"{source} is not the file that was exported. Delete {model} and export the run again.")
    # Not a link: its time would be that of the export, and so older than what the graph makes it from.
    copy_file(source, target)


def read_export(model_dir: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe and the provenance that an export carries.

    Raises:
        WorldtuneError: the folder is no export of this version.
    """
    provenance = read_json(model_dir / "provenance.json")
    try:
        return Recipe.model_validate(provenance["recipe"]), provenance
    except (KeyError, TypeError, ValidationError) as error:
        raise WorldtuneError(f"{model_dir} is no export of this version ({error}). Export the run again.") from error
