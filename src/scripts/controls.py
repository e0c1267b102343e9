"""Make one kind of control for one shard of a dataset.

    python src/scripts/controls.py --dataset my_videos --shard 0003 --control edge --threads 8

Makes datasets/my_videos/edge/<clip_id>.mkv and the shard's manifest; only clips whose video changed are done.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.controls import make_controls
from worldtune.dataset.parameters import stage_values
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--control", required=True, help="one of the dataset's controls")
    parser.add_argument("--threads", type=int, default=1, help="clips that are done at once")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    name, shard, control = arguments.dataset, arguments.shard, arguments.control
    config = find_dataset(arguments.config, name)
    values = stage_values("controls", name, config, shard=shard, control=control)
    check_fingerprint(arguments.expect, values, f"the {control} controls of {name}, shard {shard},")
    print(make_controls(name, config, shard, control, processes=arguments.threads))


if __name__ == "__main__":
    run(main)
