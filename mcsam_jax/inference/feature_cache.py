"""Features of a frozen encoder, or of its frozen stages, computed once and stored in files.

A frozen encoder gives an image the same features in every epoch, so training and evaluation read them from

  <data_dir>/features/<digest>/<split>.npy                  float16 [n, V, P, C]
  <data_dir>/features/<digest>/<split>_augmented<k>.npy     version k of the augmented images, for training

The digest covers everything that the features depend on: encoder (with its code, if it is the user's own) and number of
trained stages, weights, data, image size, and the version of this code. Images are written in order, each to its slot
[P, C]. The slot of an absent view is a hole in the file: it reads as zeros and takes no space. The file is called
<split>.npy.unfinished until the last image is written; a later run continues at its end.

Shapes: n studies, V views, P patches per view, C channels.
"""

from collections.abc import Callable
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
from typing import IO, TypeVar

from flax import linen as nn
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import Features
from input_pipeline.splits import dataset_dir, Split
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import hash_weights
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.preemption import PreemptionGuard
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import is_import_name
from mcsam_jax.files.lock import open_lock_file
from mcsam_jax.inference.image_encoder import (
  compute_pooled_features,
  encode_images,
  encode_records,
  make_augmented_feature_fn,
  make_feature_fn,
  make_pool_fn,
)
from mcsam_jax.models import augment
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_encoder, make_frozen_stages

T = TypeVar("T")
VERSION = 3              # increase it when the same inputs would give other features
BYTES_PER_VALUE = 2      # float16


def load_features_on_all_hosts(workdir: Workdir, split: Split, guard: PreemptionGuard, watchdog: Watchdog,
                               log: Callable[[str], None]) -> np.ndarray | None:
  """Returns the cached features of a split on every host; None if the whole encoder is trained.

  Hosts that share a disk wait for host 0 to compute them. If the data is in a bucket, each host has its own files.
  """
  return _load_on_all_hosts(lambda: load_split_features(workdir, split, log), workdir, guard, watchdog)


def load_train_features_on_all_hosts(workdir: Workdir, split: Split, guard: PreemptionGuard, watchdog: Watchdog,
                                     log: Callable[[str], None]) -> Features | None:
  """Returns the same for training: one array per augmented version, if `encoder.cached_augmentations` asks for any."""
  return _load_on_all_hosts(lambda: load_augmented_features(workdir, split, log), workdir, guard, watchdog)


def _load_on_all_hosts(load: Callable[[], T], workdir: Workdir, guard: PreemptionGuard, watchdog: Watchdog) -> T:
  if "://" in workdir.config.data.data_dir:
    with guard.immediate():
      features = load()
    with watchdog.paused("waiting for the features of other hosts"):
      multihost.barrier()
    return features
  with watchdog.paused_unless_host0():
    return multihost.host0_then_others(load, context=guard.immediate)


def load_augmented_features(workdir: Workdir, split: Split, log: Callable[[str], None] = print) -> Features | None:
  """Returns the features of each of the `encoder.cached_augmentations` versions; without any, `load_split_features`."""
  num_versions = workdir.config.encoder.cached_augmentations
  if not num_versions:
    return load_split_features(workdir, split, log)
  return [_load_version(workdir, split, version, log) for version in range(num_versions)]


def load_split_features(workdir: Workdir, split: Split, log: Callable[[str], None] = print) -> np.ndarray | None:
  """Returns the cached features [n, V, P, C] of a split, computed if needed; None if the whole encoder is trained.

  With `encoder.trained_stages` they are the output of the frozen stages.
  """
  return _load_version(workdir, split, None, log) if workdir.config.encoder.frozen else None


def _load_version(workdir: Workdir, split: Split, version: int | None, log: Callable[[str], None]) -> np.ndarray:
  assert workdir.encoder_variables is not None, "a workdir with a frozen encoder has its weights"
  encoder = make_frozen_stages(workdir.config)
  return load_or_compute_features(workdir.config, split, encoder, workdir.encoder_variables, log, version)


def load_pooled_features(workdir: Workdir, split: Split, log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [n, C]: pooled features of each study's first view, of the encoder as it was before training."""
  features = load_split_features(workdir, split, log)
  if features is not None:
    return pool_first_view(features, make_pool_fn(workdir.config, workdir.encoder_variables))
  encoder = make_encoder(workdir.config.encoder.name)
  variables = workdir.encoder_variables or init_encoder_variables(workdir.config)
  return compute_pooled_features(workdir.config, split, encoder, variables, log)


def pool_first_view(features: np.ndarray, pool: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Returns float32 [n, C]: the first view of features [n, V, P, C], averaged over the patches by `make_pool_fn`."""
  size = 256                                           # a memory-mapped array may be larger than the memory
  return np.concatenate([pool(features[start:start + size, 0]) for start in range(0, max(len(features), 1), size)])


def load_or_compute_features(config: ConfigDict, split: Split, encoder: nn.Module, variables: dict,
                             log: Callable[[str], None] = print, version: int | None = None) -> np.ndarray:
  """Returns the features of a split, float16 [n, V, P, C], as a memory-mapped array.

  Args:
    config: the features are stored below `data.data_dir`, or below the temporary folder if that is in a bucket.
    split: the records; their first `data.num_views` images count.
    encoder: the module `make_frozen_stages(config)`.
    variables: its variables; those of later stages do no harm.
    log: receives lines of progress, and one with the size of the file.
    version: of the augmented images, see `make_augmented_feature_fn`; None: the images as they are.

  Raises:
    UserError: the disk is full, or the folder can't be written.
  """
  name, image_size, code = config.encoder.name, config.data.image_size, ""
  feature_shape = find_encoder(name).feature_shape(image_size, config.encoder.trained_stages)
  shape = (len(split), config.data.num_views, *feature_shape)
  if is_import_name(name):       # the name says nothing about the code, which may have changed since they were stored
    blank = jax.ShapeDtypeStruct((1, image_size, image_size, 1), np.uint8)
    code = jax.jit(functools.partial(encode_images, encoder, config)).lower(variables, blank).as_text()
  folder = _make_folder_name(config, split, variables, code, version is not None)
  path = folder / (f"{split.name}.npy" if version is None else f"{split.name}_augmented{version}.npy")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _is_complete(path, shape):
      _write_features(path, shape, config, split, encoder, variables, log, version)
    return np.load(path, mmap_mode="r")
  except OSError as error:
    if error.errno == errno.ENOSPC:
      _unfinished_path(path).unlink(missing_ok=True)
      raise UserError(f"no space for the features of {path.stem} in {path.parent}: they take up to {_size(shape)}; "
                      "free some space, or set --config.data.data_dir") from error
    raise UserError(f"{path}: features can't be stored there ({error.strerror or error}); "
                    "set --config.data.data_dir") from error


def _write_features(path: pathlib.Path, shape: tuple[int, ...], config: ConfigDict, split: Split,
                    encoder: nn.Module, variables: dict, log: Callable[[str], None], version: int | None) -> None:
  """Writes the file `path`, or the missing part of an unfinished one."""
  header, slot_bytes = _npy_header(shape), BYTES_PER_VALUE * math.prod(shape[2:])
  unfinished = _unfinished_path(path)
  with open_lock_file(unfinished) as file:
    # Of several runs, or of hosts that share a disk, one computes the features and the others wait here.
    try:
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      log(f"{path.parent} can't be locked ({error.strerror}): runs that start together all compute the features")
    if not unfinished.exists() or not os.path.samefile(file.fileno(), unfinished):
      return                                        # the run that had the lock has finished or failed
    if file.read(len(header)) != header:
      file.truncate(0)
      file.seek(0)
      file.write(header)
    first_slot = (file.seek(0, os.SEEK_END) - len(header)) // slot_bytes
    if version is None:
      encode_plain = make_feature_fn(encoder, config, jax.local_device_count())
      encode = lambda variables, pixels, slots: encode_plain(variables, pixels)
    else:
      encode = make_augmented_feature_fn(encoder, config, version)
    log(f"caching the features of {path.stem} in {path.parent}: up to {_size(shape)}")
    batches = encode_records(config, split, range(len(split)), shape[1], encode, variables,
                             f"features of {path.stem}", log, first_slot)
    for slots, features in batches:
      for slot, image_features in zip(slots, features):
        if not np.isfinite(image_features).all():
          raise UserError(f"{config.encoder.name} gives image {slot % shape[1] + 1} of record {slot // shape[1]} of "
                          f"split {split.name} features that float16 can't hold (NaN, or above 65,504): check "
                          "encoder.weights, or train the whole encoder (encoder.frozen=false)")
        file.seek(len(header) + slot * slot_bytes)
        _write_all(file, image_features.tobytes())
    file.truncate(len(header) + BYTES_PER_VALUE * math.prod(shape))
    with contextlib.suppress(FileNotFoundError):    # without locks another run may have renamed it
      os.replace(unfinished, path)


def _make_folder_name(config: ConfigDict, split: Split, variables: dict, code: str, augmented: bool) -> pathlib.Path:
  """Returns a folder whose name changes with everything that the features depend on."""
  data = config.data
  digest = hashlib.sha256(json.dumps([
      VERSION, config.encoder.name, hash_weights(variables), data.image_size, data.num_views,
      *([data.target, data.min_words] if data.min_words else []),      # they select the records
      *([{"trained_stages": config.encoder.trained_stages}] if config.encoder.trained_stages else []),
      *([{"augmentation": augment.VERSION}] if augmented else []),
      str(dataset_dir(config)).removeprefix(str(data.data_dir))]).encode())    # its name covers all settings
  digest.update(code.encode())
  # A few records reveal data that was prepared again under the same name.
  for index in np.linspace(0, len(split) - 1, min(len(split), 32)).astype(int):
    digest.update(b"".join(split[int(index)]["images"]))
  # A memory-mapped array needs a local file.
  root = f"{tempfile.gettempdir()}/mcsam" if "://" in data.data_dir else data.data_dir
  return pathlib.Path(root) / "features" / digest.hexdigest()[:16]


def _size(shape: tuple[int, ...]) -> str:
  """Returns the size of a file of features, in words."""
  return f"{BYTES_PER_VALUE * math.prod(shape) / 1e9:.3g} GB"


def _unfinished_path(path: pathlib.Path) -> pathlib.Path:
  """Returns the name of a file while it is being written."""
  return path.with_name(path.name + ".unfinished")


def _npy_header(shape: tuple[int, ...]) -> bytes:
  """Returns the header of a float16 .npy file."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
  return buffer.getvalue()


def _is_complete(path: pathlib.Path, shape: tuple[int, ...]) -> bool:
  """Returns whether a file has the header and the length of features of this shape."""
  header = _npy_header(shape)
  if not path.exists() or path.stat().st_size != len(header) + BYTES_PER_VALUE * math.prod(shape):
    return False
  with open(path, "rb") as file:
    return file.read(len(header)) == header


def _write_all(file: IO[bytes], data: bytes) -> None:
  """Writes all of `data`; a single write to an unbuffered file may take only a part, as when the disk gets full."""
  while data:
    data = data[file.write(data):]
