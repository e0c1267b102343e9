"""Start the processes of a training job on this node; launch.sh calls it in the place of torchrun.

python src/scripts/launch.py --standalone --nproc_per_node=2 src/scripts/train.py demo_edge_posttrain
"""

import sys

from worldtune.training.launch import launch

if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
