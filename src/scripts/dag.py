"""Draw the graph of the configured runs: logs/dag.mmd (mermaid), and logs/dag.svg where graphviz is installed.

python src/scripts/dag.py
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.docs import draw_graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in draw_graph(Path(), Path("logs")):
        print(path)


if __name__ == "__main__":
    run(main)
