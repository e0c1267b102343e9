"""Dry run of a dataset of many named files: wall time and memory, against the same graph of an empty folder.

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
CONFIG = """
runs: [many]
datasets:
  many: {{kind: folder, path: {path}, num_shards: 64, min_clips: 1, min_frames: 121, controls: [edge],
         text_encoder: google-t5/t5-11b}}
"""
RECIPE = 'extends = "edge_posttrain"\n[data]\ndataset = "many"\n'
WRAPPER = """
import resource, subprocess, sys
returncode = subprocess.call(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=sys.stderr)
sys.exit(returncode)
"""


def dry_run(folder: Path, config: Path) -> tuple[float, int, str]:
    """Return seconds, MiB of peak memory, and the output of a dry run of the whole graph."""
    command = [sys.executable, "-m", "snakemake", "--dryrun", "--cores", "1", "--nocolor", "results/many/model"]
    environment = {**os.environ, "WORLDTUNE_CONFIG": str(config)}
    start = time.monotonic()
    wrapped = [sys.executable, "-c", WRAPPER, *command]
    done = subprocess.run(wrapped, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    peak = re.search(r"PEAK (\d+)", done.stderr)
    assert peak is not None
    return seconds, int(peak.group(1)), done.stdout + done.stderr


def main() -> None:
    """Print one line for the baseline, one for the many files, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("Snakefile", "rules", "src", "profiles"):
            (folder / part).symlink_to(REPOSITORY / part)
        shutil.copytree(REPOSITORY / "config", folder / "config")
        (folder / "config/recipes/many.toml").write_text(RECIPE)
        (folder / "empty").mkdir()
        (folder / "videos").mkdir()
        for number in range(arguments.files):
            (folder / f"videos/{number:06d}.mp4").touch()
            (folder / f"videos/{number:06d}.txt").write_text(f"Scene number {number}.")
        results = {}
        for source in ("empty", "videos"):
            config = folder / f"{source}.yaml"
            config.write_text(CONFIG.format(path=source))
            results[source] = dry_run(folder, config)
        base, many = results["empty"], results["videos"]
        print(f"baseline, empty folder: {base[0]:.1f} s, {base[1]} MiB")
        print(f"{arguments.files} videos and captions: {many[0]:.1f} s, {many[1]} MiB, {many[0] / base[0]:.2f} x")


if __name__ == "__main__":
    main()
