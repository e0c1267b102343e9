"""Rendered scenes as files: videos, captions, depth, segmentation and keypoints in Transfer1's dataset formats."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldtune.annotate.depth_files import MAX_LEVEL_8, grey_levels
from worldtune.common.files import atomic_path, sha256_file, write_json, write_text
from worldtune.common.progress import progress
from worldtune.demo.driving import MAIN_CAMERA, Street, render_street
from worldtune.demo.scenes import RenderedScene, render_scene
from worldtune.formats.keypoints import PICKLE_PROTOCOL, Person, person_fields, write_keypoints
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import write_video

VERSION = 3

FACE_CONFIDENCE_MIN = 0.6
"""Faces have a box around their points that are seen."""


def depth_picture(depth_thw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return depth as a grey video (uint8 [T, H, W, 3]) as Depth Anything draws it: near is bright.

    Inverse depth is stretched to 0 to 255 by one minimum and one maximum of the whole clip; the sky is 0.
    """
    inverse = 1 / depth_thw
    grey = grey_levels(inverse, (float(inverse.min()), float(inverse.max())), MAX_LEVEL_8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def segmentation_of(scene: RenderedScene) -> list[dict[str, Any]]:
    """Return the content of a segmentation file: one entry a thing that is seen."""
    return [
        {"phrase": phrase, "segmentation_mask_rle": encode_clip_mask(mask)}
        for phrase, mask in zip(scene.phrases, scene.instance_masks, strict=True)
        if mask.any()
    ]


def keypoints_of(scene: RenderedScene) -> list[list[Person]]:
    """Return the people of each frame as keypoint files have them, with a box around what is seen of each."""
    height, width = scene.frames.shape[1:3]
    # The person is the last thing of a scene that has one.
    masks = scene.instance_masks[-1]
    return [
        [
            person_fields(points, _box(mask), (width, height), face_confidence_min=FACE_CONFIDENCE_MIN)
            for points in people
        ]
        for people, mask in zip(scene.keypoints, masks, strict=True)
    ]


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return left, top, width, height as shares and confidence 1 of what a mask [H, W] shows; zeros for nothing."""
    if not mask.any():
        return np.zeros(5)
    (top, bottom), (left, right) = ((line[0], line[-1] + 1) for line in map(np.flatnonzero, (mask.any(1), mask.any(0))))
    height, width = mask.shape
    return np.array([left / width, top / height, (right - left) / width, (bottom - top) / height, 1.0])


def write_scene(scene: RenderedScene, folder: Path) -> list[Path]:
    """Write a scene below `folder` and return the files' paths.

    The files are NAME.mp4, NAME.txt (the caption), depth/NAME.mp4, seg/NAME.pickle and keypoint/NAME.pickle.
    """
    video, caption = folder / f"{scene.name}.mp4", folder / f"{scene.name}.txt"
    depth = folder / "depth" / f"{scene.name}.mp4"
    seg, keypoint = (folder / kind / f"{scene.name}.pickle" for kind in ("seg", "keypoint"))
    write_video(video, scene.frames, scene.fps)
    write_text(caption, scene.caption + "\n")
    write_video(depth, depth_picture(scene.depth), scene.fps)
    with atomic_path(seg) as temporary:
        temporary.write_bytes(pickle.dumps(segmentation_of(scene), protocol=PICKLE_PROTOCOL))
    write_keypoints(keypoint, keypoints_of(scene))
    return [video, caption, depth, seg, keypoint]


def write_street(name: str, street: Street, folder: Path, fps: float, views: Sequence[str]) -> list[Path]:
    """Write a street below `folder` and return the files' paths.

    The files are NAME.mp4, hdmap/NAME.mp4, lidar/NAME.mp4 and NAME.txt (the caption); of several views they lie in a
    folder each, and the first one has the caption.
    """
    paths = []
    for camera, frames in street.frames.items():
        place = folder / camera if views else folder
        videos = ((place, frames), (place / "hdmap", street.hdmap[camera]), (place / "lidar", street.lidar[camera]))
        for target, video in videos:
            write_video(target / f"{name}.mp4", video, fps)
            paths.append(target / f"{name}.mp4")
    caption = (folder / views[0] if views else folder) / f"{name}.txt"
    write_text(caption, street.caption + "\n")
    return [*paths, caption]


def write_scenes(
    names: Sequence[str],
    folder: Path,
    manifest: Path,
    *,
    world: str,
    views: Sequence[str],
    seed: int,
    num_frames: int,
    width: int,
    height: int,
    fps: float,
) -> None:
    """Render scenes into `folder`; write last, to `manifest`, the SHA-256 of every file by its path below `folder`.

    Args:
        names: names of scenes.
        folder: where the files go.
        manifest: JSON file.
        world: "objects" or "driving".
        views: cameras of a driving world, a folder each; none renders the front camera, without a folder.
        seed: of all scenes.
        num_frames: of each scene.
        width: pixels.
        height: pixels.
        fps: frames a second.
    """
    hashes: dict[str, str] = {}
    size: dict[str, Any] = {"seed": seed, "num_frames": num_frames, "width": width, "height": height, "fps": fps}
    for name in progress(names, "scenes"):
        if world == "driving":
            street = render_street(name, cameras=tuple(views) or (MAIN_CAMERA,), **size)
            paths = write_street(name, street, folder, fps, views)
        else:
            paths = write_scene(render_scene(name, **size), folder)
        hashes.update({path.relative_to(folder).as_posix(): sha256_file(path) for path in paths})
    write_json(
        manifest,
        {
            "format": 1,
            "seed": seed,
            "num_frames": num_frames,
            "width": width,
            "height": height,
            "fps": fps,
            "scenes": sorted(names),
            "files": hashes,
        },
    )
