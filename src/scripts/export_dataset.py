"""Write a validated dataset in the layout of Cosmos-Transfer1: videos/, metas/, t5_xxl/ and a folder of each control.

    python src/scripts/export_dataset.py --dataset annotated --output DIR
    python src/scripts/export_dataset.py --dataset waymo_views --output DIR

All files are copies, which are yours to change. Controls that training computes have no files.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.clips import load_dataset
from worldtune.dataset.config import find_dataset
from worldtune.dataset.original_layout import write_original_layout
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    find_dataset(arguments.config, arguments.dataset)
    number = write_original_layout(load_dataset(arguments.datasets / arguments.dataset), arguments.output)
    print(f"{arguments.output}: {number} clips")


if __name__ == "__main__":
    run(main)
