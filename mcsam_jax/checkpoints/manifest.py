"""What a checkpoint is made of: a list of its files with size and SHA-256, so that damage is found before it is used.

Orbax notices a checkpoint that was never finished, but restores one whose bytes have changed on the disk without a
word. So `manifest.json` is written into a checkpoint's folder when it has been committed, and compared with the files
before anything is restored. It also holds what else is known of the checkpoint: scores, and the place in the data.
"""

import concurrent.futures
import hashlib
import json

from etils import epath
import jax

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.distributed import multihost
from mcsam_jax.retryable import is_retryable

NAME = "manifest.json"
READ_AT_ONCE = 2 ** 22       # bytes
THREADS = 4


def write(folder: epath.Path, facts: dict) -> None:
  """Writes the manifest of a finished checkpoint, with `facts` (JSON values) about it."""
  names = _files(folder)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    digests = dict(zip(names, pool.map(lambda name: _digest(folder / name), names)))
  _save(folder, {"facts": facts, "files": digests})


def update_metadata(folder: epath.Path, facts: dict) -> None:
  """Adds facts to a manifest that is there."""
  content = json.loads((folder / NAME).read_text())
  _save(folder, content | {"facts": content["facts"] | facts})


def is_there(folder: epath.Path) -> bool:
  """Tells whether a checkpoint has a manifest; raises where a disk doesn't answer, which `exists` takes for a no."""
  try:
    (folder / NAME).read_bytes()
  except FileNotFoundError:
    return False
  return True


def facts(folder: epath.Path) -> dict | None:
  """Returns the facts of a checkpoint; None where it has no manifest, or a damaged one."""
  try:
    return _load(folder)["facts"]
  except (FileNotFoundError, ValueError, AttributeError):
    return None


def verify(folder: epath.Path) -> str:
  """Returns what is wrong with a checkpoint's files, naming the first; "" where they are as they were written.

  Many hosts share the reading, and return the same. Without a manifest nothing is known to be wrong.

  Raises:
    an error that `is_retryable`: the disk didn't answer, which says nothing about the files.
  """
  recorded, broken = {}, False
  try:
    recorded = _load(folder)["files"]
  except FileNotFoundError:
    pass
  except (ValueError, AttributeError):               # no JSON, or none of ours
    broken = True
  recorded, broken = multihost.broadcast_from_host0([recorded, broken])
  names = sorted(recorded)
  mine = names[jax.process_index()::jax.process_count()]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    problems = pool.map(lambda name: _problem(folder / name, recorded[name]), mine)
    wrong = [names.index(name) for name, problem in zip(mine, problems) if problem]
  first = multihost.all_reduce_min(-1 if broken else min(wrong, default=len(names)))
  if first == -1:
    return f"{folder / NAME} is not what was written"
  return _problem(folder / names[first], recorded[names[first]]) if first < len(names) else ""


def _problem(path: epath.Path, recorded: dict) -> str:
  try:
    found = _digest(path)
  except FileNotFoundError:
    return f"{path} is missing"
  except OSError as error:                             # a bad sector, say; a bucket's faults are of other types
    if is_retryable(error):
      raise
    return f"{path} can't be read ({error.strerror or error})"
  if found["bytes"] != recorded["bytes"]:
    return f"{path} has {found['bytes']} bytes instead of {recorded['bytes']}"
  return "" if found == recorded else f"{path} has other bytes than were written"


def _digest(path: epath.Path) -> dict:
  digest, size = hashlib.sha256(), 0
  with path.open("rb") as file:
    while chunk := file.read(READ_AT_ONCE):
      digest.update(chunk)
      size += len(chunk)
  return {"bytes": size, "sha256": digest.hexdigest()}


def _files(folder: epath.Path) -> list[str]:
  """Returns the names of all files below a folder, those of other hosts too, relative to it; without the manifest."""
  found, folders = [], [folder]
  while folders:
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      elif path.parent != folder or NAME not in path.name:
        found.append(str(path.relative_to(folder)))
  return sorted(found)


def _save(folder: epath.Path, content: dict) -> None:
  atomic_write(folder / NAME, _text(content))


def _load(folder: epath.Path) -> dict:
  """Raises ValueError unless the manifest is what was written, to the byte."""
  found = (folder / NAME).read_bytes()
  content = json.loads(found)
  if _text(content) != found.decode():
    raise ValueError(f"{folder / NAME} is damaged")
  return content


def _text(content: dict) -> str:
  """Returns the text of a manifest, with its own digest."""
  content = {name: value for name, value in content.items() if name != "sha256"}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps(content | {"sha256": digest}, indent=1, sort_keys=True) + "\n"
