import numpy as np
import pytest

from worldtune.formats.keypoints import person_fields, write_keypoints
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle

SIZE = (640, 480)
SHAPES = {
    "human-bbox": ((5,), np.float16),
    "human-bbox-abs": ((5,), np.float16),
    "body-keypoints": ((133, 3), np.float16),
    "body-keypoints-abs": ((133, 3), np.float16),
    "hand-keypoints": ((42, 3), np.float16),
    "hand-keypoints-abs": ((42, 3), np.float16),
    "face-bbox": ((4,), np.float16),
    "face-bbox-abs": ((4,), np.int16),
}


def person(seed: int = 0) -> dict[str, np.ndarray]:
    points = np.random.default_rng(seed).uniform(0, 1, (133, 3))
    return person_fields(points, np.array([0.1, 0.2, 0.3, 0.4, 0.9]), SIZE, face_confidence_min=0.5)


def test_a_person_has_every_field_of_the_format():
    assert {key: (array.shape, array.dtype.type) for key, array in person().items()} == SHAPES


def test_fields_are_shares_and_pixels():
    points = np.full((133, 3), [0.5, 0.25, 0.9])
    points[30] = 0.25, 0.125, 0.5
    points[31] = 0.9, 0.9, 0.49
    points[91:] = np.random.default_rng(0).uniform(0, 1, (42, 3))
    box = np.array([0.25, 0.5, 0.125, 0.25, 0.75])
    fields = person_fields(points, box, SIZE, face_confidence_min=0.5)
    assert fields["human-bbox"].tolist() == box.tolist()
    assert fields["human-bbox-abs"].tolist() == [160, 240, 80, 120, 0.75]
    assert fields["body-keypoints-abs"][0].tolist() == [320, 120, np.float16(0.9)]
    np.testing.assert_array_equal(fields["hand-keypoints"], fields["body-keypoints"][91:])
    np.testing.assert_array_equal(fields["hand-keypoints-abs"], fields["body-keypoints-abs"][91:])
    assert fields["face-bbox"].tolist() == [0.25, 0.125, 0.25, 0.125]
    assert fields["face-bbox-abs"].tolist() == [160, 60, 160, 60]


def test_a_face_that_is_not_seen_has_an_empty_box():
    points = np.full((133, 3), [0.5, 0.25, 0.1])
    fields = person_fields(points, np.zeros(5), SIZE, face_confidence_min=0.5)
    assert fields["face-bbox"].tolist() == fields["face-bbox-abs"].tolist() == [0, 0, 0, 0]


def test_files_are_read_exactly_by_the_reader_of_training(tmp_path):
    frames = [[person(1), person(2)], [], [person(3)]]
    path = tmp_path / "people.pickle"
    write_keypoints(path, frames)
    read = read_pickle(path, MAX_CONTROL_BYTES)
    assert list(read) == [0, 1, 2]
    for number, people in enumerate(frames):
        assert len(read[number]) == len(people)
        for expected, found in zip(people, read[number], strict=True):
            assert list(found) == list(SHAPES)
            for key, array in expected.items():
                assert found[key].dtype == array.dtype
                np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("count", [0, 2])
def test_equal_people_give_equal_bytes(tmp_path, count):
    for name in ("a", "b"):
        write_keypoints(tmp_path / name, [[person(seed) for seed in range(count)]])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
