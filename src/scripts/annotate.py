"""Annotate the clips of one shard of a dataset with one kind of control, by networks.

    python src/scripts/annotate.py --dataset my_videos --shard 0003 --control depth

Makes datasets/my_videos/depth/<clip_id>.mp4 and the shard's manifest; only clips whose video or annotator changed are
done, and a job that was killed goes on with the clip at which it ended.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.annotation import annotate_clips
from worldtune.dataset.config import find_dataset
from worldtune.dataset.parameters import stage_values
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--control", required=True, help="a control of the dataset's annotate")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--expect", help="fingerprint of the values that the workflow planned with")
    parser.add_argument("--config", type=Path, default=config_path())
    arguments = parser.parse_args()
    name, shard, control = arguments.dataset, arguments.shard, arguments.control
    config = find_dataset(arguments.config, name)
    values = stage_values("annotate", name, config, shard=shard, control=control)
    check_fingerprint(arguments.expect, values, f"the {control} controls of {name}, shard {shard},")
    print(annotate_clips(name, config, shard, control, device=arguments.device))


if __name__ == "__main__":
    run(main)
