"""Find where the videos of one shard of a dataset are cut into clips.

    python src/scripts/cuts.py --dataset my_videos --shard 0003 --threads 8

Makes the shard's manifest, a row for each part of a video; only videos that changed are decoded.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.cuts import find_cuts
from worldtune.dataset.parameters import stage_values
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--threads", type=int, default=1, help="videos that are read at once")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    values = stage_values("cuts", arguments.dataset, config, shard=arguments.shard)
    check_fingerprint(arguments.expect, values, f"the source of {arguments.dataset}, shard {arguments.shard},")
    print(find_cuts(arguments.dataset, config, arguments.shard, processes=arguments.threads))


if __name__ == "__main__":
    run(main)
