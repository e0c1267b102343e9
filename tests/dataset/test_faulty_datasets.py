"""What may be wrong with a dataset that was made by hand: validation names each clip and file with its reason."""

import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from worldtune.common.files import read_json
from worldtune.dataset.clips import SUMMARY
from worldtune.dataset.validate import conclude, examine
from worldtune.formats.keypoints import person_fields
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import iterate_frames, write_video

FRAMES, HEIGHT, WIDTH = 6, 32, 48


def depth(num_frames: int = FRAMES, *, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, HEIGHT // 8, width // 8, 1), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2).repeat(3, axis=3)


def seg(num_frames: int = FRAMES) -> list[dict[str, object]]:
    mask = np.zeros((num_frames, HEIGHT, WIDTH), bool)
    mask[:, 4:9, 4:9] = True
    return [{"phrase": "cup", "segmentation_mask_rle": encode_clip_mask(mask)}]


def people(num_frames: int = FRAMES, *, confidence: float = 0.9, without: str = "") -> dict[int, list[object]]:
    points = np.full((133, 3), 0.5)
    points[:, 2] = confidence
    box = np.array([0.1, 0.1, 0.5, 0.5, 0.9])
    person = person_fields(points, box, (WIDTH, HEIGHT), face_confidence_min=0.3)
    person.pop(without, None)
    return {number: [person] for number in range(num_frames)}


UNUSABLE = {
    "depth_lacks_a_frame": ({"depth": depth(5)}, "depth unusable: it has 5 frames, the clip has 6"),
    "depth_of_another_size": ({"depth": depth(width=40)}, "depth unusable: it is 40x32, the clip is 48x32"),
    "depth_is_missing": ({"depth": None}, "depth unusable: expected it as depth/depth_is_missing.mp4"),
    "empty_caption": ({"caption": "  \n"}, "no caption: it is empty"),
    "seg_lacks_a_frame": ({"seg": seg(5)}, "seg unusable: object 0 has a mask of (5, 32, 48)"),
    "people_lack_a_frame": ({"keypoint": people(5)}, "keypoint unusable: it has 5 frames, the clip has 6"),
    "people_lack_bodies": (
        {"keypoint": people(without="body-keypoints")},
        "keypoint unusable: frame 0: body-keypoints of a person is NoneType; expected [133, 3]",
    ),
    "people_lack_hands": (
        {"keypoint": people(without="hand-keypoints")},
        "keypoint unusable: frame 0: hand-keypoints of a person is NoneType; expected [42, 3]",
    ),
    "people_without_numbers": (
        {"keypoint": people(confidence=float("nan"))},
        "keypoint unusable: frame 0: a confidence is no number",
    ),
}
"""By name of a clip: what is unlike a good one, and how the reason begins."""
REMARKED = {
    "long_caption": ({"caption": "word " * 600}, "caption cut: it is longer than 512 tokens"),
    "depth_of_one_level": ({"depth": np.full((FRAMES, HEIGHT, WIDTH, 3), 120, np.uint8)}, "depth mostly empty: 6 of 6"),
    "depth_of_one_frame": ({"depth": depth(1).repeat(FRAMES, axis=0)}, "depth stands still: "),
    "seg_without_objects": ({"seg": []}, "seg mostly empty: 6 of 6"),
}
"""The same of clips that are used, with how a remark begins."""


@pytest.fixture
def faulty(source, fake_encoder):
    source.options |= {"controls": ["depth", "seg", "keypoint"], "min_clips": 2}
    cases = {"good": {}, "copy": {}} | {name: fault for name, (fault, _) in (UNUSABLE | REMARKED).items()}
    for kind in ("depth", "seg", "keypoint"):
        (source.folder / kind).mkdir(parents=True)
    for seed, (name, fault) in enumerate(cases.items()):
        parts = {"caption": "A thing.", "depth": depth(), "seg": seg(), "keypoint": people()} | fault
        source.add(f"{name}.mp4", caption=parts["caption"], seed=seed)
        if parts["depth"] is not None:
            write_video(source.folder / f"depth/{name}.mp4", parts["depth"], 24)
        for kind in ("seg", "keypoint"):
            (source.folder / kind / f"{name}.pickle").write_bytes(pickle.dumps(parts[kind]))
    encode_worse(source.folder / "good.mp4", source.folder / "copy.mp4")
    write_video(source.folder / "depth/nobody.mp4", depth(), 24)
    (source.folder / "seg/nobody.pickle").write_bytes(pickle.dumps(seg()))
    source.all_stages()
    return source


def encode_worse(path, target) -> None:
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": "32"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in iterate_frames(path):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def test_each_fault_is_named_with_its_reason(faulty):
    found = examine("tiny", faulty.config, datasets=faulty.datasets)
    conclude(found)
    table = {row["source_key"].removesuffix(".mp4"): row for row in found.table}
    assert {name for name, row in table.items() if row["status"] != "ok"} == UNUSABLE.keys()
    for name, (_, reason) in UNUSABLE.items():
        assert table[name]["reason"].startswith(reason)
    for name, (_, remark) in REMARKED.items():
        assert remark in table[name]["remarks"]
    assert table["copy"]["remarks"].startswith("looks alike: good.mp4, ")
    assert not any(word in table["good"]["remarks"] for word in ("empty", "still", "cut"))
    said = "2 given files belong to no video: depth/nobody.mp4, seg/nobody.pickle"
    assert said in found.remarks
    assert said in (faulty.root / SUMMARY).read_text()
    assert read_json(faulty.root / "dataset.json")["num_clips"] == 2 + len(REMARKED)


def test_files_of_no_video_are_named_in_the_original_layout_too(source, fake_encoder):
    source.options |= {"layout": "original", "text": "given", "controls": ["depth"], "min_clips": 2}
    for name in ("a", "b"):
        source.add(f"videos/{name}.mp4", caption=None)
        source.add(f"depth/{name}.mp4", caption=None)
    for path in ("depth/c.mp4", "depth/deep/a.mp4", "t5_xxl/c.pkl", "t5_xxl/a.pickle", "depth/notes.txt"):
        (source.folder / path).parent.mkdir(exist_ok=True)
        (source.folder / path).write_bytes(b"")
    (source.folder / "depth/deep/back").symlink_to(source.folder / "depth")
    source.all_stages()
    found = examine("tiny", source.config, datasets=source.datasets)
    assert "3 given files belong to no video: depth/c.mp4, depth/deep/a.mp4, t5_xxl/c.pkl" in found.remarks
