"""Download the videos of one shard of a dataset of kind hdvila or huggingface.

    python src/scripts/fetch_videos.py --dataset hdvila --shard 0003 --threads 4

Makes videos below datasets/hdvila/source/ and the shard's manifest. A video that failed is tried again by
`make retry DATASET=hdvila` alone.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.download import fetch_videos
from worldtune.dataset.parameters import stage_values
from worldtune.dataset.repository import fetch_repository
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--threads", type=int, default=1, help="downloads at once")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    values = stage_values("fetch_videos", arguments.dataset, config, shard=arguments.shard)
    check_fingerprint(arguments.expect, values, f"the configuration of {arguments.dataset}")
    fetch = fetch_repository if config.kind == "huggingface" else fetch_videos
    print(fetch(arguments.dataset, config, arguments.shard, processes=arguments.threads))


if __name__ == "__main__":
    run(main)
