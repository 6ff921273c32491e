"""Reads JSON and text that other programs wrote: byte-order marks, other encodings, lone surrogates, deep nesting.

A JSON file may hold half of a surrogate pair ("\\ud83d"), which is legal there but can't be stored as UTF-8.
"""

import codecs
from collections.abc import Iterable, Sequence
import json
import os
import re

from mcsam_jax.errors import UserError

REPLACEMENT = "\ufffd"
SURROGATE_NOTE = ("half of a surrogate pair, which no encoding can store, was replaced by U+FFFD; texts that held one: "
                  "{count}. The program that wrote them cut a character in two")
_SURROGATE = re.compile("[\ud800-\udfff]")
_OTHER_ENCODINGS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
                    (codecs.BOM_UTF16_BE, "UTF-16"))


def decode_text(data: bytes, path: str | os.PathLike) -> str:
  """Returns the text of a file in UTF-8, without its byte-order mark.

  Args:
    data: the bytes of the file.
    path: its path, for errors.

  Raises:
    UserError: the bytes are in another encoding.
  """
  for mark, encoding in _OTHER_ENCODINGS:
    if data.startswith(mark):
      raise UserError(f"{path} is {encoding} text: save it as UTF-8")
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
  if "\0" in text[:4]:                                # every other byte of ASCII in UTF-16
    raise UserError(f"{path} holds NUL characters, as UTF-16 text without a byte-order mark does: save it as UTF-8")
  return text


def parse_json(content: str, path: str | os.PathLike, location: str = "") -> object:
  """Returns the value of a JSON text; an object must not have a name twice, of which `json` would keep the last value.

  Args:
    content: the text.
    path: the file, for errors.
    location: where the text is in it, such as "line 7"; "" for the whole file.

  Raises:
    UserError: the text is not JSON, is nested too deep, or has a name twice.
  """
  where = f"{path}{location and ' ' + location}"

  def make_object(pairs: Sequence[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
      names = set()
      for number, (name, _) in enumerate(pairs, 1):
        if name in names:
          raise UserError(f"{where}: entry {number} of an object has the name of an earlier entry; give each name, "
                          "such as the id of a study, once")
        names.add(name)
    return made

  try:
    return json.loads(content, object_pairs_hook=make_object)
  except RecursionError as error:
    raise UserError(f"{where}: its brackets are nested too deep to be read") from error
  except ValueError as error:
    raise UserError(f"{where}: not JSON ({error})") from error


def replace_surrogates(text: str) -> str:
  """Returns a text with U+FFFD in place of lone surrogates, so that it can be encoded."""
  return _SURROGATE.sub(REPLACEMENT, text)


def list_names(names: Iterable[object]) -> str:
  """Returns the names of fields for an error, without those that could be an id or a text."""
  names = list(names)
  shown = [name for name in names if isinstance(name, str) and re.fullmatch("[A-Za-z_]{1,30}", name)][:10]
  num_hidden = len(names) - len(shown)
  return ", ".join([*shown, *([f"{num_hidden} that aren't shown"] if num_hidden else [])]) or "none"
