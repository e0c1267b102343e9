"""Gather the shards of a dataset and check that it is fit to train on.

    python src/scripts/validate.py --dataset my_videos --threads 8

Makes datasets/my_videos/dataset.json and clips.parquet if it is, and validation/index.html in any case.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.parameters import stage_values
from worldtune.dataset.validate import conclude, examine
from worldtune.evaluate.validation_page import write_page
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--threads", type=int, default=1, help="files that are read at once")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    values = stage_values("validate", arguments.dataset, config)
    check_fingerprint(arguments.expect, values, f"the configuration of {arguments.dataset}")
    found = examine(arguments.dataset, config, threads=arguments.threads)
    write_page(found, threads=arguments.threads)
    print(conclude(found))


if __name__ == "__main__":
    run(main)
