"""Draw the graph of the configured runs: logs/dag.mmd (mermaid), and logs/dag.svg where graphviz is installed.

python src/scripts/dag.py
"""

from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.docs import draw_graph


def main() -> None:
    for path in draw_graph(Path(), Path("logs")):
        print(path)


if __name__ == "__main__":
    run(main)
