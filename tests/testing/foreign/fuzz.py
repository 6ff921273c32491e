"""Seeded mutations of files, and the run that parses them: no traceback, no hang, no memory beyond a bound."""

from collections.abc import Callable, Sequence
import copy
import json
import pathlib
import random
import time
from typing import Any

from mcsam_jax.errors import UserError
from tests.testing.foreign.memory import limited_memory

MAX_SECONDS, MAX_BYTES = 10, 2 ** 30           # for one input, on a machine that is busy with other work, too
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2 ** 31, 2 ** 63, -2 ** 63, 10 ** 30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "\x00", "\x1b[2J", "\ud800", "a" * 5000, "/dev/zero", "../../etc/passwd", [], {}, [None], [[]], {"": {}},
    {"x": 1}, ["a", "a"], [1, "a", None])
ODD_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"[", b"{", b'"', b"\\", b"-", b"9" * 30, b"\x00" * 8, b"\xff" * 8,
             b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"]" * 40, b"[" * 3000)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
  """Returns data with a few bits flipped, or parts cut, doubled, swapped, overwritten or inserted."""
  content = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
    position = rng.randrange(len(content) + 1)
    length = rng.choice((1, 1, 2, 4, 8, 30))
    match rng.randrange(7):
      case 0 | 1 if position < len(content):
        content[position] ^= 1 << rng.randrange(8)
      case 2 if position < len(content):
        content[position] = rng.randrange(256)
      case 3:
        del content[position:position + length]
      case 4:
        content[position:position] = rng.choice(ODD_BYTES)
      case 5:
        content[position:position + length] = rng.choice(ODD_BYTES)[:length]
      case _:
        other = rng.randrange(len(content) + 1)
        content[position:position] = content[other:other + length]
  if rng.random() < 0.05:
    del content[rng.randrange(len(content) + 1):]
  return bytes(content)


def mutate_value(value: Any, rng: random.Random) -> Any:
  """Returns a JSON value in which one item has an odd value, is missing, or has another name."""
  value = copy.deepcopy(value)
  parents, level = [], [value]
  while level:
    parents += [item for item in level if isinstance(item, (dict, list)) and item]
    level = [child for item in level if isinstance(item, (dict, list))
             for child in (item.values() if isinstance(item, dict) else item)]
  if not parents or rng.random() < 0.02:
    return rng.choice(ODD_VALUES)
  parent = rng.choice(parents)
  key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
  odd = rng.choice(ODD_VALUES)
  match rng.randrange(6):
    case 0:
      del parent[key]
    case 1 if isinstance(parent, dict):
      parent[odd if isinstance(odd, str) else f"{key}x"] = parent.pop(key)
    case 2:
      parent[key] = json.loads("[" * 200 + "]" * 200)
    case _:
      parent[key] = odd
  return value


def mutate_json(data: bytes, rng: random.Random) -> bytes:
  """Returns JSON with another value somewhere, or with other bytes."""
  if rng.random() < 0.3:
    return mutate_bytes(data, rng)
  return json.dumps(mutate_value(json.loads(data), rng)).encode()


class Finding(AssertionError):
  """An input that wasn't handled; the message says which, and `data` are its bytes."""

  def __init__(self, message: str, data: bytes):
    super().__init__(message)
    self.data = data


def fuzz(path: pathlib.Path, seeds: Sequence[bytes], mutate: Callable[[bytes, random.Random], bytes],
         parse: Callable[[], Any], count: int, seed: int = 0) -> int:
  """Parses `count` mutated files, and returns how many of them were refused.

  Args:
    path: where each mutated file is written; nothing else below its folder's parent may change.
    seeds: contents that are mutated.
    mutate: makes the mutations.
    parse: reads the file; it returns, or raises a UserError of one printable line.
    count: number of inputs.
    seed: of the mutations.

  Raises:
    Finding: an input raised another error, took too long, took too much memory, or changed another file.
  """
  files = _snapshot(path)
  num_refused = 0
  for number in range(count):
    rng = random.Random(f"{seed} {number}")
    data = mutate(rng.choice(seeds), rng)
    path.write_bytes(data)
    started = time.monotonic()
    problem = check(parse)
    num_refused += problem == ""
    if problem:
      raise Finding(f"input {number} of seed {seed}: {problem}", data)
    if time.monotonic() - started > MAX_SECONDS:
      raise Finding(f"input {number} of seed {seed} took {time.monotonic() - started:.0f} s", data)
  if _snapshot(path) != files:
    raise Finding(f"files beside {path} changed", b"")
  return num_refused


def check(parse: Callable[[], Any]) -> str | None:
  """Returns None if a file is read, "" if it is refused as it should be, else what is wrong."""
  try:
    with limited_memory(MAX_BYTES):
      parse()
  except UserError as error:
    return "" if str(error).isprintable() and str(error) else f"not a printable line: {str(error)!r}"
  except Exception as error:
    place = error.__traceback__
    while place and place.tb_next:
      place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}: {error} ({where})"
  return None


def _snapshot(path: pathlib.Path) -> dict[str, bytes]:
  """Returns the content of all files below the folder above that of `path`, except `path` itself."""
  return {str(file): file.read_bytes() for file in path.parent.parent.rglob("*") if file.is_file() and file != path}
