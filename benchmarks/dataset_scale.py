"""Many tiny clips from ingest to validation, killed five times: is any lost or doubled, and what does each stage take?

The workflow runs over shards until the dataset is validated. Its whole process group is killed (SIGKILL) at random
amounts of finished work, and the same command is started again. Then the clip table and the files are compared with the
source's list, and one caption is edited, which must embed one clip again. A smaller dataset that nothing disturbs, in a
folder of its own, is the baseline; so is plainly decoding its videos. Status 1 where a clip is lost, doubled or
embedded again without need. Results that are synced one by one are the baseline of those that are synced in groups.

python benchmarks/dataset_scale.py --folder DIR [--clips 10000] [--baseline-clips 1000] [--kills 5] [--seed 0]
"""

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldtune.checkpoint.hub import write_file_list
from worldtune.common.files import atomic_path, syncs_left_to_caller
from worldtune.dataset.clips import CONTROL_SUFFIXES, clip_id, load_dataset
from worldtune.dataset.ledger import Ledger
from worldtune.demo.text_encoder import write_text_encoder
from worldtune.media.video import iterate_frames, write_video

REPOSITORY = Path(__file__).parents[1]
DATASET = "scale"
SOURCE = "source_videos"
ENCODER = "benchmark/tiny-t5"
STAGES = ("ingest", "captions", "t5", "controls", "validate")
LEDGERS = ("ingest", "captions", "t5", "controls-edge")
DISTINCT = 64
"""Videos that are encoded; the others are these with another unused box at their end."""
FRAMES_THW = (9, 48, 64)
CLIPS_PER_SHARD = 250
RESULTS = 500
RESULT_BYTES = 2000
CONFIG = """
runs: []
datasets:
  {dataset}: {{kind: folder, path: {source}, num_shards: {shards}, min_clips: 2, min_frames: 9, controls: [edge],
    text_encoder: {encoder}, text_max_tokens: 64}}
"""


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What the jobs of one stage took, as snakemake measured those that ended well."""

    seconds: float
    """Sum over the jobs."""
    peak_mib: float
    """Largest resident memory of one job, its processes summed."""


class Workspace:
    """A folder in which the workflow runs over its own source."""

    def __init__(self, folder: Path, num_clips: int) -> None:
        """Make the videos, captions, text encoder and configuration below `folder`, which is emptied."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.num_clips = folder, num_clips
        for part in ("Snakefile", "rules", "profiles", "src"):
            (folder / part).symlink_to(REPOSITORY / part)
        shutil.copytree(REPOSITORY / "config", folder / "config")
        for recipe in (folder / "config/recipes").glob("*.toml"):
            recipe.unlink()
        shards = max(2, -(-num_clips // CLIPS_PER_SHARD))
        text = CONFIG.format(dataset=DATASET, source=SOURCE, shards=shards, encoder=ENCODER)
        (folder / "config/config.yaml").write_text(text)
        encoder = folder / "checkpoints" / ENCODER
        write_text_encoder(encoder, seed=0)
        write_file_list(encoder, sorted(path.name for path in encoder.iterdir()))
        self.keys = list(write_source(folder / SOURCE, num_clips))
        self.root = folder / "datasets" / DATASET

    def start(self) -> subprocess.Popen[bytes]:
        """Start the workflow in a process group of its own."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor", str(self.target)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
        environment.pop("WORLDTUNE_CONFIG", None)
        with open(self.folder / "snakemake.log", "ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def target(self) -> Path:
        """The validated dataset, from the workspace's folder."""
        return Path("datasets") / DATASET / "dataset.json"

    def run(self) -> float:
        """Run the workflow to its end and return the seconds."""
        start = time.monotonic()
        process = self.start()
        try:
            status = process.wait()
        finally:
            kill_group(process)
        if status:
            sys.exit((self.folder / "snakemake.log").read_text()[-4000:])
        return time.monotonic() - start

    def finished(self) -> int:
        """Count the results of all stages that are recorded."""
        return sum(
            path.read_bytes().count(b'"row":') for stage in LEDGERS for path in (self.root / "ledger" / stage).glob("*")
        )

    def costs(self) -> dict[str, StageCost]:
        """Return what each stage's jobs took."""
        costs = {}
        for stage in STAGES:
            rows = []
            for path in (self.folder / "benchmark_records" / stage).glob("*.tsv"):
                with open(path, newline="") as file:
                    rows += list(csv.DictReader(file, delimiter="\t"))
            peaks = [float(row["max_rss"]) for row in rows if row["max_rss"] not in ("NA", "-")]
            costs[stage] = StageCost(seconds=sum(float(row["s"]) for row in rows), peak_mib=max(peaks, default=0.0))
        return costs

    def stamps(self, folder: str) -> dict[str, tuple[int, int]]:
        """Return what tells whether the files of a folder of the dataset were written again."""
        return {entry.name: (entry.stat().st_ino, entry.stat().st_mtime_ns) for entry in os.scandir(self.root / folder)}


def write_source(folder: Path, num_clips: int) -> Iterator[str]:
    """Write videos of FRAMES_THW with a caption beside each, and yield their keys."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    encoded = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(min(DISTINCT, num_clips)):
            num_frames, height, width = FRAMES_THW
            blocks = rng.integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
            path = Path(scratch) / f"{number}.mp4"
            write_video(path, blocks.repeat(8, axis=1).repeat(8, axis=2), 24)
            encoded.append(path.read_bytes())
    for number in range(num_clips):
        key = f"{number % 100:02d}/clip_{number:06d}.mp4"
        path = folder / key
        path.parent.mkdir(exist_ok=True)
        # A box of a kind that every reader passes over.
        path.write_bytes(encoded[number % len(encoded)] + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
        path.with_suffix(".txt").write_text(f"Thing number {number} moves over the floor.")
        yield key


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `Workspace.start` gave, with all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def run_with_kills(workspace: Workspace, kills: int, rng: random.Random) -> tuple[float, list[int]]:
    """Run the workflow, killed at random amounts of finished work.

    Returns:
        Seconds over all tries, and the number of recorded results at each kill.
    """
    total = len(LEDGERS) * workspace.num_clips
    start, moments = time.monotonic(), []
    for wanted in sorted(rng.randrange(total // 50, total) for _ in range(kills)):
        process = workspace.start()
        while workspace.finished() < wanted and process.poll() is None:
            time.sleep(0.2)
        # Anywhere in what follows the amount: within a clip, between two jobs, in a job's end.
        time.sleep(rng.uniform(0, 2))
        if process.poll() is not None:
            sys.exit((workspace.folder / "snakemake.log").read_text()[-4000:])
        kill_group(process)
        moments.append(workspace.finished())
    workspace.run()
    return time.monotonic() - start, moments


def lost_or_doubled(workspace: Workspace) -> list[str]:
    """Return what in the table of clips or in the files differs from the source's list."""
    expected = {clip_id(key): key for key in workspace.keys}
    dataset = load_dataset(workspace.root)
    problems = [f"{clip.source_key} cannot be used: {clip.reason}" for clip in dataset.unusable]
    identifiers = [clip.clip_id for clip in dataset.clips]
    problems += [f"{key} is lost" for identifier, key in expected.items() if identifier not in set(identifiers)]
    problems += [f"{clip.source_key} is doubled or unknown" for clip in dataset.clips if clip.clip_id not in expected]
    if len(set(identifiers)) < len(identifiers):
        problems.append(f"{len(identifiers) - len(set(identifiers))} rows are doubled")
    for folder, suffix in (
        ("videos", ".mp4"),
        ("metas", ".txt"),
        ("t5_xxl", ".pickle"),
        ("edge", CONTROL_SUFFIXES["edge"]),
    ):
        names = {path.stem for path in (workspace.root / folder).glob(f"*{suffix}") if not path.name.startswith(".")}
        for what, difference in (("lacks", expected.keys() - names), ("has unknown", names - expected.keys())):
            if difference:
                problems.append(f"{folder} {what} {len(difference)} clips, {min(difference)} among them")
    return problems


def embedded_again(workspace: Workspace) -> tuple[int, float]:
    """Edit one caption and run the workflow; return the number of embeddings that were written, and the seconds."""
    before = workspace.stamps("t5_xxl")
    caption = (workspace.folder / SOURCE / workspace.keys[len(workspace.keys) // 2]).with_suffix(".txt")
    caption.write_text("Another caption.")
    seconds = workspace.run()
    after = workspace.stamps("t5_xxl")
    return sum(after[name] != stamp for name, stamp in before.items()), seconds


def leftovers(workspace: Workspace) -> int:
    """Count the temporary files that killed jobs left."""
    return sum(path.name.startswith(".") for path in workspace.root.rglob("*") if path.is_file())


def seconds_a_result(folder: Path, *, in_groups: bool) -> float:
    """Return the mean seconds of writing a small file, syncing it and recording it in a ledger."""
    ledger = Ledger(folder, "results", f"{in_groups:04d}")
    names = [f"{number:04d}" for number in range(RESULTS)]
    ledger.start(*names)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        if in_groups:
            stack.enter_context(ledger.results_in_groups())
            stack.enter_context(syncs_left_to_caller())
        for name in names:
            path = folder / f"{in_groups}" / f"{name}.bin"
            with atomic_path(path) as temporary:
                temporary.write_bytes(name.encode() * RESULT_BYTES)
            ledger.finish(name, {}, (path,), {})
    return (time.monotonic() - start) / RESULTS


def decode_seconds(workspace: Workspace) -> float:
    """Return the seconds of decoding each video of the source once, in this process."""
    start = time.monotonic()
    for key in workspace.keys:
        for _ in iterate_frames(workspace.folder / SOURCE / key):
            pass
    return time.monotonic() - start


def main() -> None:
    """Print a table of the stages against the baseline, and what the kills did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where two folders are made and removed")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--baseline-clips", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    base = Workspace(arguments.folder / "baseline", arguments.baseline_clips)
    many = Workspace(arguments.folder / "many", arguments.clips)
    alone, grouped = (seconds_a_result(base.folder / "results", in_groups=flag) for flag in (False, True))
    print(
        f"a small result synced and recorded: {1000 * alone:.2f} ms alone, {1000 * grouped:.2f} ms in groups, "
        f"{alone / grouped:.1f} x faster"
    )
    print(f"making {base.num_clips + many.num_clips} clips: {time.monotonic() - start:.1f} s", flush=True)
    plain = decode_seconds(base) / base.num_clips
    print(f"baseline, decoding alone: {1000 * plain:.2f} ms a clip", flush=True)
    base_seconds = base.run() / base.num_clips
    print(f"baseline, {base.num_clips} clips undisturbed: {1000 * base_seconds:.1f} ms a clip", flush=True)
    rng = random.Random(arguments.seed)
    seconds, moments = run_with_kills(many, arguments.kills, rng)
    per_clip = seconds / many.num_clips
    print(
        f"{many.num_clips} clips, killed at {', '.join(map(str, moments))} of {len(LEDGERS) * many.num_clips} results: "
        f"{seconds:.0f} s, {1000 * per_clip:.1f} ms a clip, {per_clip / base_seconds:.2f} x"
    )
    print("stage      baseline ms a clip      ms a clip    ratio   x decoding   peak MiB (baseline)")
    costs, base_costs = many.costs(), base.costs()
    for stage in STAGES:
        cost, reference = costs[stage], base_costs[stage]
        one, other = cost.seconds / many.num_clips, reference.seconds / base.num_clips
        print(
            f"{stage:<10} {1000 * other:>18.2f} {1000 * one:>14.2f} {one / other:>8.2f} {one / plain:>12.1f} "
            f"{cost.peak_mib:>10.0f} ({reference.peak_mib:.0f})",
            flush=True,
        )
    problems = lost_or_doubled(many)
    print(f"temporary files left: {leftovers(many)}")
    again, edit_seconds = embedded_again(many)
    print(f"one caption edited: {again} embedded again, {edit_seconds:.0f} s")
    problems += lost_or_doubled(many)
    if again != 1:
        problems.append(f"{again} clips were embedded again for one edited caption")
    for workspace in (base, many):
        shutil.rmtree(workspace.folder)
    if problems:
        sys.exit("\n".join(problems))
    print(f"no clip lost or doubled out of {many.num_clips}")


if __name__ == "__main__":
    main()
