"""Render the scenes of one shard of an embedded dataset.

python src/scripts/render_synthetic.py --dataset synthetic --shard 0000
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.parameters import stage_values
from worldtune.demo.write import write_scenes
from worldtune.recipe.identity import check_fingerprint
from worldtune.recipe.project import config_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="name of the dataset in config/config.yaml")
    parser.add_argument("--shard", required=True, help="four digits")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the dataset's values are not these")
    arguments = parser.parse_args()
    config = find_dataset(config_path(), arguments.dataset)
    values = stage_values("render_synthetic", arguments.dataset, config, shard=arguments.shard)
    check_fingerprint(arguments.expect, values, f"{config_path()}, dataset {arguments.dataset}")
    folder = Path("datasets") / arguments.dataset / "source"
    write_scenes(
        sorted({Path(key).stem for key, *_ in values["scenes"]}),
        folder,
        folder / f"{arguments.shard}.json",
        world=config.world,
        views=tuple(config.views),
        seed=config.seed,
        num_frames=config.num_frames,
        width=config.width,
        height=config.height,
        fps=config.fps,
    )


if __name__ == "__main__":
    run(main)
