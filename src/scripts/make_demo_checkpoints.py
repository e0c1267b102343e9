"""Make the demo's tiny checkpoints: base and control networks, text encoder, video tokenizer.

python src/scripts/make_demo_checkpoints.py --checkpoints checkpoints
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.demo.checkpoints import make_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of all checkpoints")
    parser.add_argument(
        "--model", type=Path, default=Path("config/models/transfer1_demo.toml"), help="sizes of the networks"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoints(arguments.checkpoints, arguments.model, seed=arguments.seed)


if __name__ == "__main__":
    run(main)
