"""Stage annotate: one kind of control of a shard's clips, made by a network from their frames.

It stands in the place of stage controls for that kind and shares its ledger, since both write the same files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file
from worldtune.common.versions import stage_version
from worldtune.dataset.annotators import Annotator, DepthAnnotator, KeypointAnnotator, SegAnnotator
from worldtune.dataset.clips import LOSSLESS_SUFFIXES, control_path, lossless_path, video_path
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.control_checks import check_control, check_lossless
from worldtune.dataset.controls import (
    COLUMNS,
    LOSSLESS_COLUMN,
    annotated_stage,
    check_whole_video,
    control_columns,
    taken_stage,
)
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.make_captions import MAX_FAILURES, caption_stage
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest, retire_manifests, write_manifest
from worldtune.dataset.prompts import prompts_key
from worldtune.dataset.reasons import may_pass
from worldtune.dataset.verification import captions_of_rows
from worldtune.dataset.work import Outcome, Task, do_tasks

if TYPE_CHECKING:
    from worldtune.annotate.protocol import ClipAnnotator, ClipToAnnotate

VERSION = 1

Row = dict[str, Any]


def annotate_clips(
    name: str,
    config: DatasetConfig,
    shard: str,
    kind: str,
    *,
    datasets: Path = Path("datasets"),
    checkpoints: Path = Path("checkpoints"),
    device: str = "auto",
) -> Path:
    """Annotate the clips of a shard and write its manifest; only clips whose frames or annotator changed are done.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        kind: the control, one of the dataset's `annotate`.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints, which holds the networks.
        device: "cuda", "cpu" or "auto".

    Returns:
        The manifest's path. It has a row for each usable clip of stage ingest, with the reason where a clip could not
        be annotated. Where a network failed over it, the next job tries again.

    Raises:
        WorldtuneError: the dataset does not annotate this control, a manifest is missing, a caption is not the one that
            its stage wrote, a network cannot be loaded, or the networks failed over every clip of many.
    """
    annotator = config.annotate.find(kind)
    if annotator is None:
        raise WorldtuneError(f"dataset {name} has no annotator of {kind!r} (datasets.{name}.annotate).")
    root = datasets / name
    stage = annotated_stage(kind)
    path = manifest_path(root, stage, shard)
    clips = _clips(root, shard)
    prompts = _prompts(clips, source_folder(name, config, datasets)) if annotator.reads_prompts else {}
    # A clip's own prompts stand in the place of its caption.
    searched = {clip["clip_id"] for clip in clips} - prompts.keys()
    captions = _captions(root, config, shard, searched) if annotator.reads_captions else {}
    with open_ledger(root, taken_stage(kind), shard) as ledger:
        retire_manifests(root, taken_stage(kind))
        _sweep(root / kind, {clip["clip_id"] for clip in clips})
        rows = _annotate(
            ledger, clips, captions, prompts, kind, annotator, checkpoints, device, f"{stage} {name} {shard}"
        )
        write_manifest(path, rows, control_columns(kind, config))
    return path


def _clips(root: Path, shard: str) -> list[Row]:
    rows = read_manifest(manifest_path(root, INGEST_STAGE, shard), INGEST_COLUMNS)
    return [row for row in rows if row["status"] == "ok"]


def _captions(root: Path, config: DatasetConfig, shard: str, clip_ids: set[str]) -> dict[str, tuple[str, str]]:
    """Return the text and the hash of the caption of each of these clips that has one."""
    stage, columns = caption_stage(config)
    rows = read_manifest(manifest_path(root, stage, shard), columns)
    usable = [row for row in rows if row["status"] == "ok" and row["clip_id"] in clip_ids]
    texts = captions_of_rows(root, usable, stage)
    return {row["clip_id"]: (text, row["caption_sha256"]) for row, text in zip(usable, texts, strict=True)}


def _prompts(clips: list[Row], source: Path) -> dict[str, Path]:
    files = {clip["clip_id"]: source / prompts_key(clip["source_key"]) for clip in clips}
    return {identifier: file for identifier, file in files.items() if file.is_file()}


def _sweep(folder: Path, clip_ids: set[str]) -> None:
    """Remove the temporary files (.<clip_id>.*) that a killed job left of these clips; no other job writes them now."""
    for path in folder.glob(".*"):
        if path.name.split(".")[1] in clip_ids:
            path.unlink()


def _annotate(
    ledger: Ledger,
    clips: list[Row],
    captions: dict[str, tuple[str, str]],
    prompts: dict[str, Path],
    kind: str,
    annotator: Annotator,
    checkpoints: Path,
    device: str,
    label: str,
) -> list[Row]:
    # Imported here: the networks' libraries take seconds, and reading this module's columns must not need them.
    from worldtune.annotate.folder_hash import folder_sha256
    from worldtune.annotate.protocol import ClipToAnnotate

    root = ledger.root
    shared = {
        "settings": annotator.model_dump(mode="json"),
        "models_sha256": [folder_sha256(checkpoints / model) for model in annotator.models],
        "versions": [VERSION, stage_version(f"annotate/{kind}.py")],
    }
    tasks = []
    for clip in clips:
        identifier = clip["clip_id"]
        text, caption_sha256 = captions.get(identifier, (None, None))
        inputs = {"video_sha256": clip["video_sha256"], **shared}
        if identifier in prompts:
            inputs["prompts_sha256"] = sha256_file(prompts[identifier])
        elif annotator.reads_captions:
            inputs["caption_sha256"] = caption_sha256
        seen = ClipToAnnotate(
            clip_id=identifier,
            video=video_path(root, identifier),
            num_frames=clip["num_frames"],
            width=clip["width"],
            height=clip["height"],
            fps=clip["fps"],
            caption=text,
            prompts=prompts.get(identifier),
        )
        tasks.append(Task(clip_id=identifier, inputs=inputs, argument=(clip, seen)))
    work = _Work(root, kind, annotator.makes_lossless, lambda: LOADERS[kind](annotator, checkpoints, device))
    rows = do_tasks(ledger, tasks, work, work.died, label=label, processes=1)
    if len(rows) >= MAX_FAILURES and all(may_pass(row["reason"], (kind,)) for row in rows):
        raise WorldtuneError(
            f"{label}: the networks failed over each of {len(rows)} clips; over the last one: {rows[-1]['reason']}. "
            "Mend that, such as what else holds the GPU's memory, then run the same command again."
        )
    return rows


class _Work:
    """Annotates clips one by one; the networks are loaded for the first of them."""

    def __init__(self, root: Path, kind: str, makes_lossless: bool, load: "Callable[[], ClipAnnotator]") -> None:
        self._root, self._kind, self._makes_lossless, self._load = root, kind, makes_lossless, load
        self._annotator: ClipAnnotator | None = None

    def __call__(self, argument: "tuple[Row, ClipToAnnotate]") -> Outcome:
        from worldtune.annotate.protocol import NetworkFailedError, full_memory_may_pass

        clip, seen = argument
        self._annotator = self._annotator or self._load()
        control, *beside = files = self._files(seen.clip_id)
        _remove(files)
        try:
            if seen.prompts is not None:
                check_whole_video(clip, "its prompts")
            with full_memory_may_pass():
                self._annotator.annotate(seen, control)
            # As it will be read, from the first frame to the last.
            facts = check_control(self._kind, control, clip)
            hashes = {"control_sha256": sha256_file(control)}
            if self._makes_lossless:
                (lossless,) = beside
                check_lossless(self._kind, lossless, clip)
                hashes[LOSSLESS_COLUMN] = sha256_file(lossless)
        except WorldtuneError as error:
            _remove(files)
            may_pass = isinstance(error, NetworkFailedError)
            # Rows are the same wherever the folders lie.
            words = str(error).replace(str(seen.video), "the clip").replace(f"{self._root}/", "")
            reason = f"{self._kind} {'died' if may_pass else 'not made'}: {words}"
            return Outcome(row=self._row(clip, reason), may_pass=may_pass)
        row = self._row(clip, "", **vars(facts), **hashes)
        return Outcome(row=row, outputs=tuple(files[: len(hashes)]))

    def died(self, argument: "tuple[Row, ClipToAnnotate]") -> Outcome:
        return Outcome(row=self._row(argument[0], f"{self._kind} died: the process ended without a word"))

    def _files(self, clip: str) -> list[Path]:
        """Return the control's file and, for a kind that may have one, the lossless file beside it."""
        beside = [lossless_path(self._root, clip, self._kind)] if self._kind in LOSSLESS_SUFFIXES else []
        return [control_path(self._root, clip, self._kind), *beside]

    def _row(self, clip: Row, reason: str, **facts: Any) -> Row:
        row = dict.fromkeys(COLUMNS) | {column: clip[column] for column in CLIP_COLUMNS}
        if self._makes_lossless:
            row[LOSSLESS_COLUMN] = None
        state = {"status": "unusable" if reason else "ok", "reason": reason, "video_sha256": clip["video_sha256"]}
        return row | state | {column: value for column, value in facts.items() if column in row}


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _load_depth(annotator: Annotator, checkpoints: Path, device: str) -> "ClipAnnotator":
    from worldtune.annotate.depth import DepthNetwork

    assert isinstance(annotator, DepthAnnotator)
    bounds = None if annotator.scale == "clip" else annotator.scale
    return DepthNetwork(checkpoints / annotator.model, device, bounds=bounds, lossless=annotator.lossless)


def _load_seg(annotator: Annotator, checkpoints: Path, device: str) -> "ClipAnnotator":
    assert isinstance(annotator, SegAnnotator)
    if annotator.tracker_backend == "sam2":
        from worldtune.annotate.sam2_package import make_torchvision_importable

        make_torchvision_importable()
    from worldtune.annotate.seg import SegSettings, load_segmentation

    settings = SegSettings(**annotator.model_dump(exclude={"detector", "tracker", "tracker_backend"}))
    folders = (checkpoints / annotator.detector, checkpoints / annotator.tracker)
    return load_segmentation(*folders, annotator.tracker_backend, settings, device)


def _load_keypoint(annotator: Annotator, checkpoints: Path, device: str) -> "ClipAnnotator":
    from worldtune.annotate.keypoint import WholeBody

    assert isinstance(annotator, KeypointAnnotator)
    folder = checkpoints / annotator.model
    return WholeBody(
        folder / annotator.detector,
        folder / annotator.pose,
        device,
        person_confidence_min=annotator.person_confidence_min,
        keypoint_confidence_min=annotator.keypoint_confidence_min,
        max_people=annotator.max_people,
    )


LOADERS: "dict[str, Callable[[Annotator, Path, str], ClipAnnotator]]" = {
    "depth": _load_depth,
    "keypoint": _load_keypoint,
    "seg": _load_seg,
}
"""By kind of control: loads the networks that an annotator's configuration names."""
