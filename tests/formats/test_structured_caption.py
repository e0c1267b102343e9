import json

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.formats.structured_caption import (
    MEDIA_FIELDS,
    StructuredCaption,
    add_media_fields,
    answer_schema,
    caption_text,
    check_caption,
    parse_answer,
)

CAPTION = {
    "temporal_caption": "A robot pours water. Then it stops.",
    "subjects": [{"description": "a robot", "number_of_arms": 2, "paint": "white"}],
    "lighting": {"conditions": "daylight"},
    "actions": [{"time": "0:00-0:03", "description": "pours"}],
    "mine": {"kept": True},
}


def test_keys_keep_their_order_and_unknown_ones_stay():
    parsed = parse_answer(json.dumps(CAPTION))
    assert list(parsed) == list(CAPTION)
    assert parsed == CAPTION
    assert caption_text(parsed) == json.dumps(CAPTION, ensure_ascii=False)
    assert caption_text("  as it is. ") == "as it is."
    assert check_caption({}) == {}


@pytest.mark.parametrize(
    "around",
    ["{}", "```json\n{}\n```", "Here it is:\n{}\nAnything else?", "<think>maybe {{not}} this</think>\n{}"],
)
def test_what_surrounds_the_object_is_passed_over(around):
    assert parse_answer(around.format(json.dumps(CAPTION))) == CAPTION


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("A robot pours water.", "no JSON object"),
        ('{"temporal_caption": "cut o', "no valid JSON"),
        ('{"temporal_caption": "a", "fps": NaN}', "NaN"),
        ('{"temporal_caption": "half a sign: \\ud800"}', "no valid JSON"),
        ('{"temporal_caption": ' + "[" * 100_000, "no valid JSON"),
        ('{"subjects": []}', "lacks temporal_caption"),
        ('{"temporal_caption": " "}', "lacks temporal_caption"),
        ('{"temporal_caption": "a", "subjects": "a robot"}', "subjects"),
        ('{"temporal_caption": "a", "subjects": [{"number_of_legs": "two"}]}', r"subjects\.0\.number_of_legs"),
        ('{"temporal_caption": ["a"]}', "temporal_caption"),
    ],
)
def test_what_is_no_caption_is_named(answer, problem):
    with pytest.raises(WorldtuneError, match=problem):
        parse_answer(answer)


def test_fields_of_the_file_are_measured_and_come_last():
    guessed = parse_answer(json.dumps({"fps": "many", "resolution": 4} | CAPTION))
    assert guessed == CAPTION
    caption = add_media_fields({"fps": 1} | CAPTION, width=1280, height=704, num_frames=121, fps=23.976)
    assert list(caption)[-4:] == list(MEDIA_FIELDS)
    assert {name: caption[name] for name in MEDIA_FIELDS} == {
        "resolution": {"H": 704, "W": 1280},
        "aspect_ratio": "20,11",
        "duration": "5s",
        "fps": 24,
    }
    assert check_caption(caption) == caption


def test_schema_for_servers_is_closed_and_has_no_field_of_the_file():
    schema = answer_schema()
    assert set(schema["properties"]) == set(StructuredCaption.model_fields) - set(MEDIA_FIELDS)
    assert schema["required"] == ["temporal_caption"]
    parts = [schema, *schema["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts)
    # A field may have the name of a word of the schema language.
    assert set(schema["$defs"]["Action"]["properties"]) == {"time", "description"}
