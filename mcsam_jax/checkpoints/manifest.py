"""Manifests of checkpoints: the size and SHA-256 of every file, so that damage is found before anything is restored.

Orbax notices a checkpoint that was never finished, but silently restores one whose bytes have changed on the disk. So
`manifest.json` is written into the folder of a checkpoint once Orbax has committed it, and compared with the files
before they are restored. It also holds the checkpoint's metadata: step, scores and position in the data.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import stat
from typing import Any

from etils import epath
import jax

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.distributed import multihost
from mcsam_jax.errors import printable
from mcsam_jax.files.untrusted import MAX_JSON_BYTES, open_regular_file, parse_json, read_regular_file
from mcsam_jax.retryable import is_retryable

NAME = "manifest.json"
ORBAX_NAMES = ("default", "_CHECKPOINT_METADATA", "commit_success.txt")       # what Orbax writes into a checkpoint
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
  content = _load(folder)
  _save(folder, content | {"metadata": content["metadata"] | metadata})


def exists(folder: epath.Path) -> bool:
  """Returns whether a checkpoint has a manifest; raises OSError if the file system doesn't answer.

  `Path.exists` would return False for a file system that doesn't answer.
  """
  try:
    open_regular_file(folder / NAME).close()
  except FileNotFoundError:
    return False
  except OSError as error:
    if is_retryable(error):
      raise
  return True


def is_deleted(folder: epath.Path) -> bool:
  """Returns whether the folder of a checkpoint is gone; raises OSError if the file system doesn't answer."""
  if "://" in str(folder):
    return not folder.exists()
  try:
    os.stat(folder)
  except FileNotFoundError:
    return True
  return False


def is_incomplete(folder: epath.Path) -> bool:
  """Returns whether a checkpoint lacks its manifest or a file that the manifest names, as while it is deleted."""
  try:
    return not all((folder / name).exists() for name in _load(folder)["files"])
  except FileNotFoundError:
    return True
  except ValueError:
    return False


def holds_other_files(folder: epath.Path) -> bool:
  """Returns whether somebody has put files into a checkpoint, which then must not be deleted."""
  try:
    return bool(set(_list_files(folder)) - set(_load(folder)["files"]))
  except (FileNotFoundError, ValueError):
    return any(name.split("/")[0] not in ORBAX_NAMES for name in _list_files(folder))


def read_metadata(folder: epath.Path) -> dict:
  """Returns the metadata of a checkpoint, {} if it has no manifest.

  Raises:
    ValueError: its manifest is damaged.
  """
  try:
    return _load(folder)["metadata"]
  except FileNotFoundError:
    return {}


def verify(folder: epath.Path) -> str:
  """Compares the files of a checkpoint with its manifest.

  All hosts share the reading, and return the same.

  Returns:
    A description of the first damaged file; "" if all files are as they were written, or there is no manifest.

  Raises:
    Exception: an error that `is_retryable`: the file system didn't answer, which says nothing about the files.
  """
  recorded, reason = {}, ""
  try:
    recorded = _load(folder)["files"]
  except FileNotFoundError:
    reason = _find_special_file(folder) if not is_deleted(folder) else f"{folder} is missing"
  except ValueError as error:
    reason = str(error)
  recorded, reason = multihost.broadcast_from_host0([recorded, reason])
  if reason:
    return reason
  names = sorted(recorded)
  names_of_host = names[jax.process_index()::jax.process_count()]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    problems = pool.map(lambda name: _find_problem(folder / name, recorded[name]), names_of_host)
    damaged = [names.index(name) for name, problem in zip(names_of_host, problems) if problem]
  first = multihost.all_reduce_min(min(damaged, default=len(names)))
  return _find_problem(folder / names[first], recorded[names[first]]) if first < len(names) else ""


def _find_problem(path: epath.Path, recorded: dict[str, Any]) -> str:
  try:
    size = os.path.getsize(path) if "://" not in str(path) else recorded["bytes"]
    digest = _compute_digest(path) if size == recorded["bytes"] else {"bytes": size}
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
  with open_regular_file(path, can_seek=False) as file:
    while chunk := file.read(CHUNK_BYTES):
      sha256.update(chunk)
      size += len(chunk)
  return {"bytes": size, "sha256": sha256.hexdigest()}


def _list_files(folder: epath.Path) -> list[str]:
  """Returns the paths of all files below a folder, relative to it, without the manifest (and unfinished ones of it)."""
  names, folders = [], [folder] if "://" in str(folder) else []
  for parent, _, files in os.walk(folder) if not folders else ():      # not epath's iterdir, which omits names with "~"
    names += [os.path.relpath(os.path.join(parent, name), folder) for name in files]
  while folders:
    for path in folders.pop().iterdir():
      folders.append(path) if path.is_dir() else names.append(str(path.relative_to(folder)))
  return sorted(name for name in names if "/" in name or NAME not in name)


def _save(folder: epath.Path, content: dict) -> None:
  atomic_write(folder / NAME, _serialize(content))


def _find_special_file(folder: epath.Path) -> str:
  """Returns which file below a local folder is a pipe, a device or a link to one, which would be read forever."""
  for name in _list_files(folder) if "://" not in str(folder) else ():
    try:
      if not stat.S_ISREG(os.stat(folder / name).st_mode):
        return f"{folder / name} is not a regular file"
    except FileNotFoundError:
      return f"{folder / name} is missing"
  return ""


def _load(folder: epath.Path) -> dict:
  """Returns the content of a manifest.

  Raises:
    FileNotFoundError: there is none.
    ValueError: a byte differs from what was written, or it isn't what `write` writes.
    OSError: one that `is_retryable`.
  """
  try:
    data = read_regular_file(folder / NAME, MAX_JSON_BYTES)
    content = parse_json(data)
    if not isinstance(content, dict) or _serialize(content) != data.decode():
      raise ValueError("differs from what was written")
    _check_content(content)
  except ValueError as error:
    raise ValueError(f"{folder / NAME} is damaged: {printable(str(error))}") from error
  except OSError as error:
    if isinstance(error, FileNotFoundError) or is_retryable(error):
      raise
    raise ValueError(f"{folder / NAME} can't be read ({error.strerror or error})") from error
  return content


def _check_content(content: dict) -> None:
  """Raises ValueError, which names the field, unless a manifest has the fields that `write` writes."""
  metadata, files = content.get("metadata"), content.get("files")
  if not isinstance(metadata, dict) or not isinstance(files, dict):
    raise ValueError("metadata and files must be objects")
  for field in ("scores", "data_position"):
    if not isinstance(metadata.get(field, {}), dict):
      raise ValueError(f"metadata.{field} must be an object")
  for name, recorded in files.items():
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable() or str(path) in ("", "."):
      raise ValueError(f"{name} in files is no path inside the checkpoint")
    if (not isinstance(recorded, dict) or set(recorded) != {"bytes", "sha256"} or type(recorded["bytes"]) is not int
        or not isinstance(recorded["sha256"], str)):
      raise ValueError(f"files.{name} must have bytes and sha256")


def _serialize(content: dict) -> str:
  """Returns the text of a manifest, including the digest of its content."""
  content = {name: value for name, value in content.items() if name != "sha256"}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps(content | {"sha256": digest}, indent=1, sort_keys=True) + "\n"
