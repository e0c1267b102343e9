"""Fetch the metadata of an HD-VILA dataset.

python src/scripts/fetch_metadata.py --dataset hdvila
"""

import argparse
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.hdvila import fetch_metadata
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="name of the dataset in config/config.yaml")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    dataset = find_dataset(arguments.config, arguments.dataset)
    if dataset.kind != "hdvila":
        raise WorldtuneError(
            f"dataset {arguments.dataset} is of kind {dataset.kind!r} in {arguments.config}; only kind 'hdvila' has "
            "metadata to fetch."
        )
    fetch_metadata(Path("datasets") / arguments.dataset / "source/metadata.jsonl")


if __name__ == "__main__":
    run(main)
