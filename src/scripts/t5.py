"""Embed the captions of one shard of a dataset by its T5 encoder.

    python src/scripts/t5.py --dataset my_videos --shard 0003
    python src/scripts/t5.py --dataset synthetic --shard 0000 --device cpu

Makes datasets/my_videos/t5_xxl/<clip_id>.pickle and the shard's manifest. The encoder is loaded once, and only if a
caption changed.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.parameters import stage_values
from worldtune.dataset.t5 import embed_captions
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    values = stage_values("t5", arguments.dataset, config, shard=arguments.shard)
    check_fingerprint(arguments.expect, values, f"the configuration of {arguments.dataset}")
    print(embed_captions(arguments.dataset, config, arguments.shard, device=arguments.device))


if __name__ == "__main__":
    run(main)
