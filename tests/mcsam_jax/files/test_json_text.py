"""Text and JSON of other programs: byte-order marks, other encodings, surrogates, deep brackets, names given twice."""

import json

import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.files.json_text import decode_text, list_names, parse_json, replace_surrogates


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_a_mark(encoding):
  assert decode_text("\u80ba is clear".encode(encoding), "x.json") == "\u80ba is clear"


@pytest.mark.parametrize("data, part", [
    ("{}".encode("utf-16"), "UTF-16"), ("{}".encode("utf-32"), "UTF-32"), (b"\xfe\xff\x00{\x00}", "UTF-16"),
    ("{}".encode("utf-16-le"), "UTF-16"), (b"{\x00}\x00", "UTF-16"), (b'{"a": "caf\xe9"}', "byte 10")])
def test_other_encodings_are_named(data, part):
  with pytest.raises(UserError) as error:
    decode_text(data, "x.json")
  assert "x.json" in str(error.value) and part in str(error.value)


@pytest.mark.parametrize("content", [
    "[" * 3000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 1_000_000, '{"a": 1, "a": 2}', "",
    "{", "NaN,", '{"a": ' + "1" * 5000 + "}", "\x00", '"\x01"'])
def test_what_is_no_json_gets_one_line_that_names_file_and_place(content):
  with pytest.raises(UserError) as error:
    parse_json(content, "x.jsonl", "line 7")
  assert str(error.value).startswith("x.jsonl line 7: ") and "\n" not in str(error.value)


def test_lone_surrogates_are_replaced_and_pairs_are_kept():
  text = json.loads(r'"\ud83d \ude00 \ud83d\ude00 \udcff"')
  assert replace_surrogates(text) == "\ufffd \ufffd \U0001f600 \ufffd"
  assert replace_surrogates(text).encode().decode() == replace_surrogates(text)


def test_names_that_could_be_texts_are_not_listed():
  assert list_names(["id", "report", "The heart is big.", 7, None]) == "id, report, 3 that aren't shown"
