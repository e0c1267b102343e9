"""Propose one scale of depth for all clips of a dataset, measured on a sample of them.

    python src/scripts/measure_depth.py --dataset my_videos

Prints the line for `datasets.my_videos.annotate.depth` in config/config.yaml and writes nothing. The dataset's stage
ingest must have run: `snakemake datasets/my_videos/manifests/ingest/0000.parquet`, and so on for each shard.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.depth_bounds import measure_depth_bounds
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file that annotates depth")
    parser.add_argument("--clips", type=int, default=64, help="clips of the sample (64)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    options = {"device": arguments.device, "num_clips": arguments.clips, "seed": arguments.seed}
    low, high = measure_depth_bounds(arguments.dataset, config, **options)
    print(f"scale: [{low:.5g}, {high:.5g}]")


if __name__ == "__main__":
    run(main)
