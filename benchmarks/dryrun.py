"""Dry run of a dataset of many named files: wall time and memory, against the same graph of an empty folder.

Then captions and text embeddings are made by stand-ins for their scripts, which make empty outputs; one caption is
edited, and the jobs that this plans are printed.

python benchmarks/dryrun.py [--files 100000]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SHARDS = 64
CONFIG = """
runs: [many]
datasets:
  many: {{kind: folder, path: {path}, num_shards: {shards}, min_clips: 2, min_frames: 121, controls: [edge],
         text_encoder: google-t5/t5-11b}}
"""
RECIPE = 'extends = "edge_posttrain"\n[data]\ndataset = "many"\n'
STAND_IN = """
import sys
from pathlib import Path
shard = sys.argv[sys.argv.index("--shard") + 1]
Path("datasets/many/manifests/{stage}", shard + ".parquet").touch()
"""
WRAPPER = """
import resource, subprocess, sys
returncode = subprocess.call(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=sys.stderr)
sys.exit(returncode)
"""


def dry_run(folder: Path, config: Path, *targets: str) -> tuple[float, int, str]:
    """Return seconds, MiB of peak memory, and the output of a dry run."""
    start = time.monotonic()
    text = snakemake(folder, config, "--dryrun", *targets)
    seconds = time.monotonic() - start
    peak = re.search(r"PEAK (\d+)", text)
    assert peak is not None
    return seconds, int(peak.group(1)), text


def snakemake(folder: Path, config: Path, *arguments: str) -> str:
    """Run snakemake in a process that tells its peak memory; return what it prints."""
    command = [sys.executable, "-c", WRAPPER, sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor"]
    environment = {**os.environ, "WORLDTUNE_CONFIG": str(config)}
    done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout + done.stderr


def main() -> None:
    """Print one line for the baseline, one for the many files, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("Snakefile", "rules", "profiles"):
            (folder / part).symlink_to(REPOSITORY / part)
        shutil.copytree(REPOSITORY / "config", folder / "config")
        (folder / "src/scripts").mkdir(parents=True)
        for stage in ("captions", "t5"):
            (folder / f"src/scripts/{stage}.py").write_text(STAND_IN.format(stage=stage))
        (folder / "config/recipes/many.toml").write_text(RECIPE)
        (folder / "empty").mkdir()
        (folder / "videos").mkdir()
        for number in range(arguments.files):
            (folder / f"videos/{number:06d}.mp4").touch()
            (folder / f"videos/{number:06d}.txt").write_text(f"Scene number {number}.")
        results = {}
        for source in ("empty", "videos"):
            config = folder / f"{source}.yaml"
            config.write_text(CONFIG.format(path=source, shards=SHARDS))
            results[source] = dry_run(folder, config, "results/many/model")
        base, many = results["empty"], results["videos"]
        print(f"baseline, empty folder: {base[0]:.1f} s, {base[1]} MiB")
        print(f"{arguments.files} videos and captions: {many[0]:.1f} s, {many[1]} MiB, {many[0] / base[0]:.2f} x")
        embeddings = [f"datasets/many/manifests/t5/{number:04d}.parquet" for number in range(SHARDS)]
        encoder = folder / "checkpoints/google-t5/t5-11b/files.json"
        encoder.parent.mkdir(parents=True)
        encoder.touch()
        snakemake(folder, config, *embeddings)
        assert planned(dry_run(folder, config, *embeddings)[2]) == {}
        (folder / "videos/000007.txt").write_text("Another caption.")
        seconds, memory, text = dry_run(folder, config, *embeddings)
        jobs = ", ".join(f"{rule} {count}" for rule, count in sorted(planned(text).items()))
        print(f"one caption edited: {seconds:.1f} s, {memory} MiB, planned: {jobs}")


def planned(text: str) -> dict[str, int]:
    """Return the number of jobs of each rule in a dry run's output."""
    table = re.search(r"^job +count\n-+ +-+\n((?:\S+ +\d+\n)+)", text, re.MULTILINE)
    rows = [line.split() for line in table.group(1).splitlines()] if table else []
    return {rule: int(count) for rule, count in rows if rule != "total"}


if __name__ == "__main__":
    main()
