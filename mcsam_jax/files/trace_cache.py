"""Keeps what JAX traces between processes, so that only the first one traces and lowers a program.

JAX's own cache of compiled programs saves the compiler's time alone: a process still runs the Python code of the
network to find out which program it needs, which takes longer than reading the compiled one. Here the lowered program
itself is stored, as `jax.export` serializes it, and so are the shapes of a network's variables.

A file's name is a digest of everything that its content follows from: the source code of this project, the versions of
JAX and Flax, JAX's settings, the kind of device, the shapes of the arguments, and what the caller names (the config).
Programs take weights, images and reports as arguments, so that no file contains any.

Nothing is kept until `enable` names a folder, nor with JAX_ENABLE_COMPILATION_CACHE=0. Whoever replaces functions of
this project while the program runs should set that: the digest knows the source files alone.
"""

from collections.abc import Callable, Sequence
import hashlib
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

from etils import epath
import jax
import jax.export
import numpy as np

from mcsam_jax.atomic_io import atomic_write

_SOURCES = pathlib.Path(__file__).parents[1]              # mcsam_jax
_SHA256_BYTES = 32
_state: dict[str, epath.Path] = {}                        # "folder": where files are kept


def enable(folder: epath.Path) -> None:
  """Keeps programs and shapes in a folder, which is created when the first one is written."""
  _state["folder"] = folder


def keep_program(function: Callable, name: str, depends_on: Any, **jit_options) -> Callable:
  """Returns jax.jit(function, **jit_options); after `enable`, it is traced once for all processes.

  Args:
    function: a pure function of arrays, for one device. It calls no code but this project's and its libraries', and the
      classes of its results are known to `register_results`.
    name: begins the names of the files.
    depends_on: a JSON object with everything outside its arguments that the program follows from; None: the program
      isn't kept.
    **jit_options: of `jax.jit`.
  """
  if depends_on is None or not _is_enabled():
    return jax.jit(function, **jit_options)
  return _KeptProgram(function, name, depends_on, jit_options)


def keep_shapes(make_arrays: Callable[[], Any], name: str, depends_on: Any) -> Any:
  """Returns jax.eval_shape(make_arrays), a tree of dictionaries; after `enable`, traced once for all processes."""
  if not _is_enabled():
    return jax.eval_shape(make_arrays)
  path = _make_path(name, depends_on)
  stored = _read(path)
  if stored is not None:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf[1], np.dtype(leaf[0])), json.loads(stored),
                        is_leaf=lambda node: isinstance(node, list))
  shapes = jax.eval_shape(make_arrays)
  _write(path, json.dumps(jax.tree.map(lambda leaf: [leaf.dtype.name, leaf.shape], shapes)).encode())
  return shapes


def register_results(*classes: type) -> None:
  """Lets programs that return these classes (named tuples, or `flax.struct` dataclasses of arrays alone) be kept."""
  for each in classes:
    name = f"{each.__module__}.{each.__name__}"
    if issubclass(each, tuple):
      jax.export.register_namedtuple_serialization(each, serialized_name=name)
    else:
      jax.export.register_pytree_node_serialization(
          each, serialized_name=name, serialize_auxdata=lambda unused: b"", deserialize_auxdata=lambda unused: ())


def _is_enabled() -> bool:
  return "folder" in _state and jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]


class _KeptProgram:
  """A jitted function whose lowered program is read from a file, or written to one."""

  def __init__(self, function: Callable, name: str, depends_on: Any, jit_options: dict):
    self._function, self._name, self._depends_on, self._jit_options = function, name, depends_on, jit_options
    self._programs: dict[tuple, Callable] = {}            # by structure, shapes and types of the arguments

  def __call__(self, *args):
    leaves, tree = jax.tree.flatten(args)
    signature = (str(tree), *(str(jax.typeof(leaf)) for leaf in leaves))
    if signature not in self._programs:
      self._programs[signature] = self._load(signature, args)
    return self._programs[signature](*args)

  def _load(self, signature: Sequence[str], args: Sequence) -> Callable:
    """Returns the program for arguments like `args`."""
    path = _make_path(self._name, [self._depends_on, signature])
    stored = _read(path)
    try:
      if stored is not None:
        exported = jax.export.deserialize(bytearray(stored))
      else:
        exported = jax.export.export(jax.jit(self._function, **self._jit_options))(*args)
        _write(path, bytes(exported.serialize()))
    except Exception:                                     # operations that can't be exported, another format of files
      return jax.jit(self._function, **self._jit_options)
    return jax.jit(exported.call, **self._jit_options)


def _make_path(name: str, depends_on: Any) -> epath.Path:
  """Returns the file for what follows from `depends_on`, this project, its libraries and the device."""
  device = jax.devices()[0]
  settings = {name: str(getattr(jax.config, name, value)) for name, value in jax.config.values.items()}
  libraries = [importlib.metadata.version(library) for library in ("jax", "jaxlib", "flax", "numpy")]
  ingredients = [_SOURCE_DIGEST, sys.version, *libraries, settings, device.platform, device.device_kind, depends_on]
  digest = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
  return _state["folder"] / f"{name}-{digest}"


def _read(path: epath.Path) -> bytes | None:
  """Returns the content of a file; None if it is missing or damaged."""
  try:
    data = path.read_bytes()
  except OSError:
    return None
  content = data[_SHA256_BYTES:]
  return content if hashlib.sha256(content).digest() == data[:_SHA256_BYTES] else None


def _write(path: epath.Path, content: bytes) -> None:
  """Writes a file that `_read` understands, unless the source code has changed since this process read it."""
  if _digest_sources() != _SOURCE_DIGEST:
    return
  try:
    atomic_write(path, hashlib.sha256(content).digest() + content)
  except OSError:                                         # a full disk or a read-only folder: the next process traces
    pass


def _digest_sources() -> str:
  """Returns a digest of this project's source code."""
  digest = hashlib.sha256()
  for folder in (_SOURCES, _SOURCES.parent / "input_pipeline"):
    for path in sorted(folder.rglob("*.py")):
      digest.update(f"{path.relative_to(folder)};".encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()


_SOURCE_DIGEST = _digest_sources()                        # taken when this process imports its code
