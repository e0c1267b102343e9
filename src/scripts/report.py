"""Write the report of a run as one HTML file.

python src/scripts/report.py --run demo_edge_posttrain --output results/demo_edge_posttrain/report.html
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.evaluate.notebook import execute_report
from worldtune.training.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--output", required=True, type=Path, help="HTML file to write")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    parser.add_argument("--samples", type=Path, help="folder that sample.py wrote; default: samples/ of the run")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--notebook", default=Path("notebooks/run_report.ipynb"), type=Path, help="the notebook")
    parser.add_argument("--expect-trained", metavar="FINGERPRINT", help="refuse if other values were trained with")
    args = parser.parse_args()
    read_manifest(args.results / args.run, args.expect_trained)
    execute_report(
        args.notebook,
        args.output,
        title=f"Run report: {args.run}",
        parameters={
            "run_dir": str(args.results / args.run),
            "samples_dir": str(args.samples or args.results / args.run / "samples"),
            "datasets_dir": str(args.datasets),
        },
    )


if __name__ == "__main__":
    run(main)
