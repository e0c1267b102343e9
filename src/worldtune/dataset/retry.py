"""What failed for a reason that may pass is forgotten, so that the jobs that try it again run, and only those.

Such a failure is known by the label of its reason (reasons.PASSING), and is a row of a manifest that snakemake takes
for made. What else lets a clip fail would happen again, as long as neither the clip nor the configuration changes.
"""

from pathlib import Path
from typing import Any

from worldtune.common.words import count_of
from worldtune.dataset.clips import clip_id, shard_names, shard_of
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.fetched import STAGE as FETCH_STAGE
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.manifest import manifest_path, read_manifest
from worldtune.dataset.reasons import may_pass
from worldtune.dataset.stages import dataset_stages

KEEPING_STAGES = frozenset({FETCH_STAGE})
"""Stages whose ledgers keep failures that may pass, so that no other job asks for them; the others' jobs try again."""

Failed = dict[str, dict[str, frozenset[str]]]
"""Clip ids by stage and by the shard whose job tries them; what has none is left out."""


def find_failed(name: str, config: DatasetConfig, *, datasets: Path = Path("datasets")) -> Failed:
    """Return the clips of a dataset that failed for a reason that may pass.

    Args:
        name: the dataset's name.
        config: its configuration.
        datasets: folder of all datasets.

    Raises:
        WorldtuneError: a manifest is damaged or of another version.
    """
    root = datasets / name
    failed: Failed = {}
    for stage, columns in dataset_stages(config).items():
        shards: dict[str, set[str]] = {shard: set() for shard in shard_names(config.num_shards)}
        for shard, clips in shards.items():
            path = manifest_path(root, stage, shard)
            if path.exists():
                rows = read_manifest(path, columns)
                clips |= {row["clip_id"] for row in rows if may_pass(row["reason"], config.controls, stage)}
        if stage in KEEPING_STAGES:
            # Of an earlier number of shards too: a job takes over what those ledgers know.
            for shard in _ledgers(root, stage):
                for clip, row in _kept(Ledger(root, stage, shard), stage, config).items():
                    # A file that holds several videos has a row of its own here, and none in the manifest.
                    held = {clip_id(part["key"]) for part in row.get("clips", ())}
                    shards[shard_of(row["source_key"], config.num_shards)] |= held or {clip}
        found = {shard: frozenset(clips) for shard, clips in shards.items() if clips}
        if found:
            failed[stage] = found
    return failed


def forget_failed(name: str, config: DatasetConfig, *, datasets: Path = Path("datasets")) -> Failed:
    """Forget what failed for a reason that may pass: the manifests of its shards go, and what ledgers keep of it.

    Arguments and errors as those of `find_failed`; no job of the dataset may run.

    Returns:
        What `find_failed` has found; the jobs of these stages and shards try it again.
    """
    root = datasets / name
    failed = find_failed(name, config, datasets=datasets)
    for path in manifests_of(failed, root):
        # Before the ledgers forget, so that an interruption in between loses no shard.
        path.unlink(missing_ok=True)
    for stage in failed.keys() & KEEPING_STAGES:
        for shard in _ledgers(root, stage):
            with open_ledger(root, stage, shard) as ledger:
                kept = _kept(ledger, stage, config)
                # A row that names clips of an earlier file stays known, for the case that the file fails again.
                naming = [clip for clip, row in kept.items() if row.get("clips")]
                ledger.start(*naming)
                ledger.forget(kept.keys() - set(naming))
    return failed


def manifests_of(failed: Failed, root: Path) -> list[Path]:
    """Return the manifests that the jobs of these stages and shards make, below the dataset's folder `root`."""
    return [manifest_path(root, stage, shard) for stage, shards in failed.items() for shard in shards]


def failures_in_words(failed: Failed) -> str:
    """Return a line for each stage: its name, the number of clips, and the shards that they lie in."""
    lines = []
    for stage, shards in failed.items():
        clips = count_of(sum(map(len, shards.values())), "clip")
        lines.append(f"  {stage}: {clips}, in {'shard' if len(shards) == 1 else 'shards'} {', '.join(shards)}")
    return "\n".join(lines)


def _ledgers(root: Path, stage: str) -> list[str]:
    """Return the shards that a stage has a ledger of."""
    return sorted(path.stem for path in (root / "ledger" / stage).glob("*.jsonl"))


def _kept(ledger: Ledger, stage: str, config: DatasetConfig) -> dict[str, dict[str, Any]]:
    """Return the row of each clip of a ledger that failed for a reason that may pass."""
    return {clip: row for clip, row in ledger.rows().items() if may_pass(row["reason"], config.controls, stage)}
