"""Render scenes of the embedded dataset.

    python src/scripts/render_synthetic.py --output-dir raw/synthetic --names scene_0000,scene_0001 --seed 0 \
        --num-frames 41 --width 320 --height 192 --fps 24 --manifest raw/synthetic/0000.json
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.demo.write import write_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--names", required=True, help="scenes to render, separated by commas")
    parser.add_argument("--seed", type=int, required=True, help="another seed gives other scenes")
    parser.add_argument("--num-frames", type=int, required=True)
    parser.add_argument("--width", type=int, required=True, help="pixels, even")
    parser.add_argument("--height", type=int, required=True, help="pixels, even")
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--manifest", type=Path, required=True, help="JSON file with the SHA-256 of every file")
    arguments = parser.parse_args()
    write_scenes(
        [name for name in arguments.names.split(",") if name],
        arguments.output_dir,
        arguments.manifest,
        seed=arguments.seed,
        num_frames=arguments.num_frames,
        width=arguments.width,
        height=arguments.height,
        fps=arguments.fps,
    )


if __name__ == "__main__":
    run(main)
