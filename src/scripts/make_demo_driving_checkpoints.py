"""Make the demo's tiny networks for driving scenes, of one view and of three.

python src/scripts/make_demo_driving_checkpoints.py --checkpoints checkpoints
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.demo.driving_checkpoints import FAMILIES, make_driving_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of all checkpoints")
    parser.add_argument("--models", type=Path, default=Path("config/models"), help="folder of the networks' sizes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for family in FAMILIES:
        model = arguments.models / f"transfer1_demo_{family}.toml"
        make_driving_checkpoints(arguments.checkpoints, model, family, seed=arguments.seed)


if __name__ == "__main__":
    run(main)
