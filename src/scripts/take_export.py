"""Take the export of a run as a checkpoint that other runs start from (checkpoints.init_from).

python src/scripts/take_export.py --run edge_posttrain --output checkpoints/results/edge_posttrain/control.pt
"""

import argparse
from pathlib import Path

from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    parser.add_argument("--expect-trained", metavar="FINGERPRINT", help="refuse if other values were trained with")
    arguments = parser.parse_args()
    # Imported late: a typo on the command line should not wait for PyTorch.
    from worldtune.transfer1.export import take_export

    take_export(arguments.results / arguments.run, arguments.output, expected=arguments.expect_trained)


if __name__ == "__main__":
    run(main)
