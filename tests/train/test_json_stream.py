"""JSON read one record at a time: what `json` gives, whatever the size of the pieces; damage with its place."""

import json

import pytest

from argus_tools.train.readers.json_stream import iterate_json


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "value",
    [
        [],
        [1, -2.5e3, 'a\\"\u00fc\U0001f600]', None, True, {"a": [1, {"b": "}"}]}, [], ""],
        {},
        {
            "info": {"year": 2017},
            "images": [{"id": 1}, {"id": 2}],
            "empty": [],
            "number": 12,
            "annotations": [[1], [2]],
        },
    ],
)
def test_json_stream_gives_what_json_gives(value, chunk, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    read = list(iterate_json(path, chunk))
    if isinstance(value, list):
        assert read == [(None, element) for element in value]
    else:
        expected = []
        for key, element in value.items():
            expected += [(key, e) for e in element] if isinstance(element, list) else [(key, element)]
        assert read == expected


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(
    "text, message",
    [
        ("", "begins with ''"),
        ("12", "begins with '1'"),
        ("[1, 2", "cut off"),
        ('[{"a": 1}, {"a": "unfinis', "behind 1 whole records, is cut off"),
        ('{"a": [1, 2], "b', "cut off"),
        ("[1 2]", "where one of ',]' was expected"),
        ('[{"a": 1}, {"a" 2, "b": "' + "x" * 50 + '"}]', "no JSON there|cut off"),
        ("[1]]", "goes on with ']'"),
    ],
)
def test_json_stream_names_damage(text, message, chunk, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(iterate_json(path, chunk))


def test_json_stream_wants_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"not UTF-8"):
        list(iterate_json(tmp_path / "a.json"))
