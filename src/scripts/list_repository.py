"""List what a data set repository of the hub holds, for a dataset of kind huggingface.

python src/scripts/list_repository.py --dataset my_repository
"""

import argparse
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.hub import Hub
from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.parameters import stage_values
from worldtune.dataset.repository import list_repository
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    config = find_dataset(arguments.config, arguments.dataset)
    if config.kind != "huggingface":
        raise WorldtuneError(
            f"dataset {arguments.dataset} is of kind {config.kind!r} in {arguments.config}; only kind 'huggingface' "
            "has a repository to list."
        )
    values = stage_values("list_repository", arguments.dataset, config)
    check_fingerprint(arguments.expect, values, f"the configuration of {arguments.dataset}")
    print(list_repository(arguments.dataset, config, hub=Hub()))


if __name__ == "__main__":
    run(main)
