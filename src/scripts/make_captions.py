"""Make the captions of one shard of a dataset from its videos, where they are not given.

    python src/scripts/make_captions.py --dataset my_videos --shard 0003
    python src/scripts/make_captions.py --dataset my_videos --shard 0003 --device cpu

Makes datasets/my_videos/metas/<clip_id>.txt and .json, and the shard's manifest. The model or server is the dataset's
captioner in the config file; it is asked only about clips that changed or got no caption.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.make_captions import make_captions
from worldtune.dataset.parameters import stage_values
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
    values = stage_values("make_captions", arguments.dataset, config, shard=arguments.shard)
    check_fingerprint(arguments.expect, values, f"the captioner or captions of {arguments.dataset}")
    print(make_captions(arguments.dataset, config, arguments.shard, device=arguments.device))


if __name__ == "__main__":
    run(main)
