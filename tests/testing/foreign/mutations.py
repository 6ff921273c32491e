"""Random changes of small files, for tests that feed them to a parser: the same ones for the same generator."""

import json
import random

TOKENS = (b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n",
          b"\t", b"'", b"null", b"true", b"NaN", b"Infinity", b"-", b"1e999", b"0" * 40, b"9" * 5000, b"\\ud83d",
          b"\\u0000", b"\\n", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"[" * 3000, b'{"a":' * 2000, b'""', b"|||", b"<unk>",
          b"A" * 2000, b" " * 2000, b"-" * 2000, b"<br>" * 300, b"no effusion or " * 100)
VALUES = (None, True, False, 0, -1, 2 ** 70, 1.5, float("nan"), float("inf"), "", " ", "a", "\ud83d", "\0",
          "\x1b[31m", "no effusion\r\n- edema: yes", "x" * 5000, [], [[]], ["a", "b"], ["a"], {}, {"id": "a"}, [None],
          "train", "..")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
  """Returns a file with one to four random changes of its bytes."""
  content = bytearray(data)
  for _ in range(rng.randint(1, 4)):
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 1, 2, 8, 60)))
    change = rng.randrange(6)
    if change == 0 and content:
      content[start % len(content)] ^= 1 << rng.randrange(8)
    elif change == 1:
      del content[start:end]
    elif change == 2:
      content[start:start] = content[start:end]
    elif change == 3:
      del content[start:]
    elif change == 4:
      content[start:end] = rng.choice(TOKENS)
    else:
      content[start:start] = rng.choice(TOKENS)
  return bytes(content)


def mutate_json(value: object, rng: random.Random) -> object:
  """Returns a JSON value in which one random part is replaced, removed, renamed or doubled."""
  if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = rng.choice(keys), value.copy()
    change = rng.randrange(8)
    if change == 0:
      del copy[key]
    elif change == 1 and isinstance(copy, dict):
      name = rng.choice(("id", "report", "a", "", "\ud83d", "train", "text", "subject_id", "study_id", "labels"))
      copy[name] = copy.pop(key)
    elif change == 2 and isinstance(copy, list):
      copy.append(copy[key])
    else:
      copy[key] = mutate_json(copy[key], rng)
    return copy
  return rng.choice(VALUES)


def mutate_json_file(data: bytes, rng: random.Random) -> bytes:
  """Returns a JSON file with a change of its bytes, of its values, or of both."""
  if rng.random() < 0.7:
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
      value = mutate_json(value, rng)
    data = json.dumps(value).encode()
  return mutate_bytes(data, rng) if rng.random() < 0.5 else data
