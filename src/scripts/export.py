"""Export the trained model of a run, and verify the files against the training checkpoint.

python src/scripts/export.py --run demo_edge_posttrain
"""

import argparse
from pathlib import Path

from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the trained model of a run to results/<run>/model.")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    parser.add_argument("--checkpoints", default=Path("checkpoints"), type=Path, help="folder of the checkpoints")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--expect-trained", metavar="FINGERPRINT", help="refuse if other values were trained with")
    args = parser.parse_args()
    # Imported late: a typo on the command line should not wait for PyTorch.
    from worldtune.transfer1.export import export_run

    export_run(
        args.results / args.run,
        checkpoints_dir=args.checkpoints,
        datasets_dir=args.datasets,
        expected=args.expect_trained,
    )


if __name__ == "__main__":
    run(main)
