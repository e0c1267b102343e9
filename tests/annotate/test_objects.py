import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worldtune.annotate.objects import (
    Candidate,
    box_iou,
    choose_new,
    even_key_frames,
    key_frames_of_scenes,
    mask_boxes,
    mask_iou,
)

HEIGHT, WIDTH = 12, 16
rectangles = st.tuples(*(st.integers(0, size - 1) for size in (WIDTH, HEIGHT)), st.integers(1, 8), st.integers(1, 8))


def drawn(rectangle):
    left, top, width, height = rectangle
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def drawn_all(rectangles):
    return np.array([drawn(rectangle) for rectangle in rectangles], bool).reshape(-1, HEIGHT, WIDTH)


def candidates_of(masks, scores):
    return [
        Candidate(phrase="thing", score=score, box=tuple(box))
        for box, score in zip(mask_boxes(masks).tolist(), scores, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(rectangles, min_size=1, max_size=4), st.lists(rectangles, max_size=3))
def test_boxes_and_masks_of_rectangles_overlap_alike(first, second):
    masks = drawn_all(first), drawn_all(second)
    expected = [[(a & b).sum() / (a | b).sum() for b in masks[1]] for a in masks[0]]
    np.testing.assert_allclose(mask_iou(*masks), np.reshape(expected, (len(first), len(second))))
    np.testing.assert_allclose(box_iou(*map(mask_boxes, masks)), np.reshape(expected, (len(first), len(second))))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(rectangles, st.floats(0, 1)), min_size=1, max_size=6),
    st.lists(rectangles, max_size=3),
    st.floats(0.1, 1.0),
)
def test_what_is_chosen_is_new_and_what_is_not_is_known(found, followed, same):
    masks, tracked = drawn_all([rectangle for rectangle, _ in found]), drawn_all(followed)
    candidates = candidates_of(masks, [score for _, score in found])
    chosen = choose_new(candidates, masks, tracked, same)
    scores = [candidates[number].score for number in chosen]
    assert scores == sorted(scores, reverse=True)
    known = mask_iou(masks, np.concatenate([tracked, masks[chosen]]))
    for number in range(len(found)):
        if number in chosen:
            assert (known[number] >= same).sum() == 1
            assert known[number, len(tracked) + chosen.index(number)] == 1
        else:
            assert known[number].max() >= same


def test_a_box_alone_can_show_that_an_object_is_followed_already():
    whole, part = drawn((2, 2, 8, 8)), drawn((2, 2, 8, 2))
    found = [Candidate(phrase="person", score=0.9, box=(2, 2, 10, 10))]
    assert mask_iou(part[None], whole[None])[0, 0] < 0.5
    assert choose_new(found, part[None], whole[None], 0.7) == []
    assert choose_new(found, part[None], np.zeros((0, HEIGHT, WIDTH), bool), 0.7) == [0]


def test_the_larger_of_two_equally_certain_comes_first_and_an_empty_one_never():
    masks = drawn_all([(0, 0, 2, 2), (4, 4, 6, 6)])
    masks = np.concatenate([masks, np.zeros((1, HEIGHT, WIDTH), bool)])
    found = candidates_of(masks, [0.5, 0.5, 0.9])
    assert choose_new(found, masks, masks[:0], 0.7) == [1, 0]


def test_key_frames_lie_at_equal_distances():
    assert even_key_frames(121, 5) == [0, 24, 48, 72, 96]
    assert even_key_frames(3, 5) == [0, 1, 2]


def test_key_frames_begin_scenes_and_halve_the_longest_stretches():
    assert key_frames_of_scenes(100, 3, [40]) == [0, 40, 70]
    assert key_frames_of_scenes(100, 2, [10, 20, 30]) == [0, 20]
    assert key_frames_of_scenes(3, 5, []) == [0, 1, 2]
