import numpy as np
import pytest

from worldtune.annotate.detection import Detector, caption_prompt, detector_text, phrase_of
from worldtune.common.errors import WorldtuneError
from worldtune.demo.annotators import write_detector

HEIGHT, WIDTH = 96, 160


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    write_detector(folder)
    return Detector(folder, "cpu")


@pytest.fixture(scope="module")
def frame():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_a_prompt_is_phrases_in_small_letters_with_periods():
    assert detector_text(" Person.. A red  Car ") == "person. a red car."
    assert detector_text(". ") == ""


def test_a_caption_is_cut_to_128_words():
    assert caption_prompt(" ".join(["word"] * 200)).split() == ["word"] * 128


TOKENS = ["[CLS]", "person", ".", "red", "ca", "##r", ".", "[SEP]"]


@pytest.mark.parametrize(
    ("certainties", "phrase"),
    [
        ([0.9, 0.1, 0.9, 0.3, 0.0, 0.4, 0.9, 0.9], "red car"),
        ([0.9, 0.5, 0.9, 0.3, 0.0, 0.4, 0.9, 0.9], "person"),
        ([0.9, 0.1, 0.9, 0.2, 0.3, 0.0, 0.9, 0.9], "car"),
        ([0.0, 0.1, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0], "red"),
    ],
)
def test_an_object_has_the_words_of_one_phrase(certainties, phrase):
    assert phrase_of(TOKENS, certainties, 0.25) == phrase


def test_the_clauses_of_a_caption_are_phrases():
    tokens = ["[CLS]", "a", "cup", ",", "two", "hands", ";", "a", "pan", ".", "[SEP]"]
    certainties = [0.0, 0.3, 0.5, 0.0, 0.4, 0.8, 0.0, 0.3, 0.7, 0.0, 0.0]
    assert phrase_of(tokens, certainties, 0.25) == "two hands"


def test_every_box_lies_in_the_picture_and_has_words_of_the_prompt(detector, frame):
    scores = detector.search(frame, "Red cup. hand")
    candidates = detector.candidates(scores, 0.15, 0.25)
    assert candidates
    for candidate in candidates:
        left, top, right, bottom = candidate.box
        assert 0 <= left < right <= WIDTH
        assert 0 <= top < bottom <= HEIGHT
        assert candidate.score > 0.15
        assert candidate.phrase in ("red", "cup", "red cup", "hand")


def test_thresholds_leave_what_is_more_certain(detector, frame):
    scores = detector.search(frame, "Red cup. hand")
    everything = detector.candidates(scores, 0.0, 0.25)
    middle = sorted(candidate.score for candidate in everything)[len(everything) // 2]
    certain = detector.candidates(scores, middle, 0.25)
    assert certain == [candidate for candidate in everything if candidate.score > middle]
    assert 0 < len(certain) < len(everything)


def test_a_long_prompt_is_cut_to_what_the_network_reads(detector, frame):
    scores = detector.search(frame, "cup " * 300)
    assert scores.input_ids.shape[1] == detector.model.config.max_text_len
    assert {candidate.phrase.split()[0] for candidate in detector.candidates(scores, 0.0, 0.25)} == {"cup"}


def test_a_prompt_without_a_word_is_refused(detector, frame):
    with pytest.raises(WorldtuneError, match="names nothing to search for"):
        detector.search(frame, " . ")


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(WorldtuneError, match=r"config\.json does not exist; GroundingDINO has one"):
        Detector(tmp_path, "cpu")
