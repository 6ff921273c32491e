"""Manifests of checkpoints: the size and SHA-256 of every file, so that damage is found before anything is restored.

Orbax notices a checkpoint that was never finished, but silently restores one whose bytes have changed on the disk. So
`manifest.json` is written into the folder of a checkpoint once Orbax has committed it, and compared with the files
before they are restored. It also holds the checkpoint's metadata: step, scores and position in the data.
"""

import concurrent.futures
import hashlib
import json
from typing import Any

from etils import epath
import jax

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.distributed import multihost
from mcsam_jax.retryable import is_retryable

NAME = "manifest.json"
CHUNK_BYTES = 2 ** 22
THREADS = 4


def write(folder: epath.Path, metadata: dict) -> None:
  """Writes the manifest of a finished checkpoint, with `metadata` (JSON values)."""
  names = _list_files(folder)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    digests = dict(zip(names, pool.map(lambda name: _compute_digest(folder / name), names)))
  _save(folder, {"metadata": metadata, "files": digests})


def update_metadata(folder: epath.Path, metadata: dict) -> None:
  """Adds metadata to an existing manifest."""
  content = json.loads((folder / NAME).read_text())
  _save(folder, content | {"metadata": content["metadata"] | metadata})


def exists(folder: epath.Path) -> bool:
  """Returns whether a checkpoint has a manifest; raises OSError if the file system doesn't answer.

  `Path.exists` would return False for a file system that doesn't answer.
  """
  try:
    (folder / NAME).read_bytes()
  except FileNotFoundError:
    return False
  return True


def read_metadata(folder: epath.Path) -> dict | None:
  """Returns the metadata of a checkpoint; None if its manifest is missing or damaged."""
  try:
    return _load(folder)["metadata"]
  except (FileNotFoundError, ValueError, AttributeError):
    return None


def verify(folder: epath.Path) -> str:
  """Compares the files of a checkpoint with its manifest.

  All hosts share the reading, and return the same.

  Returns:
    A description of the first damaged file; "" if all files are as they were written, or there is no manifest.

  Raises:
    Exception: an error that `is_retryable`: the file system didn't answer, which says nothing about the files.
  """
  recorded, is_damaged = {}, False
  try:
    recorded = _load(folder)["files"]
  except FileNotFoundError:
    pass
  except (ValueError, AttributeError):               # not JSON, or not as it was written
    is_damaged = True
  recorded, is_damaged = multihost.broadcast_from_host0([recorded, is_damaged])
  names = sorted(recorded)
  names_of_host = names[jax.process_index()::jax.process_count()]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    problems = pool.map(lambda name: _find_problem(folder / name, recorded[name]), names_of_host)
    damaged = [names.index(name) for name, problem in zip(names_of_host, problems) if problem]
  first = multihost.all_reduce_min(-1 if is_damaged else min(damaged, default=len(names)))
  if first == -1:
    return f"{folder / NAME} differs from what was written"
  return _find_problem(folder / names[first], recorded[names[first]]) if first < len(names) else ""


def _find_problem(path: epath.Path, recorded: dict[str, Any]) -> str:
  try:
    digest = _compute_digest(path)
  except FileNotFoundError:
    return f"{path} is missing"
  except OSError as error:                             # such as a bad sector; errors of buckets have other types
    if is_retryable(error):
      raise
    return f"{path} can't be read ({error.strerror or error})"
  if digest["bytes"] != recorded["bytes"]:
    return f"{path} has {digest['bytes']} bytes instead of {recorded['bytes']}"
  return "" if digest == recorded else f"the bytes of {path} differ from what was written"


def _compute_digest(path: epath.Path) -> dict[str, Any]:
  sha256, size = hashlib.sha256(), 0
  with path.open("rb") as file:
    while chunk := file.read(CHUNK_BYTES):
      sha256.update(chunk)
      size += len(chunk)
  return {"bytes": size, "sha256": sha256.hexdigest()}


def _list_files(folder: epath.Path) -> list[str]:
  """Returns the paths of all files below a folder, relative to it, without the manifest (and unfinished ones of it)."""
  names, folders = [], [folder]
  while folders:
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      elif path.parent != folder or NAME not in path.name:
        names.append(str(path.relative_to(folder)))
  return sorted(names)


def _save(folder: epath.Path, content: dict) -> None:
  atomic_write(folder / NAME, _serialize(content))


def _load(folder: epath.Path) -> dict:
  """Returns the content of a manifest; raises ValueError if a byte differs from what was written."""
  data = (folder / NAME).read_bytes()
  content = json.loads(data)
  if _serialize(content) != data.decode():
    raise ValueError(f"{folder / NAME} is damaged")
  return content


def _serialize(content: dict) -> str:
  """Returns the text of a manifest, including the digest of its content."""
  content = {name: value for name, value in content.items() if name != "sha256"}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps(content | {"sha256": digest}, indent=1, sort_keys=True) + "\n"
