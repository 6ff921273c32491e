"""Features of a frozen encoder, computed once and kept in a file.

A frozen encoder gives an image the same features in every epoch, so training and evaluation read them from
`<data_dir>/features/<digest>/<split>.npy`, float16 [n, V, P, C]. The digest names all that they depend on:
encoder, weights, data, image size, and the version of this code. Images are written in order, one slot
[P, C] each; the slot of an absent view stays a hole in the file, which reads as zeros and takes no space.
Until the last is there the file is called `<split>.npy.unfinished`, and a later run goes on behind its end.

Shapes: n studies, V views, P patches, C channels, M images, S pixels.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import tempfile
import time

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images
from input_pipeline.prefetch import ordered_map
from input_pipeline.splits import dataset_dir, Split
from mcsam_jax.checkpoints.weights import weights_digest
from mcsam_jax.checkpoints.workdir import init_encoder_variables, Workdir
from mcsam_jax.distributed import multihost
from mcsam_jax.distributed.preemption import PreemptionGuard
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder

VERSION = 3                  # raise it when the same inputs would give other features
BATCH = 32                   # images a device
STUDIES_A_THREAD = 16        # decoded in one go
SECONDS_A_LINE = 10          # between two lines of progress


def cached_features(config: ConfigDict, split_name: str, split: Sequence[dict], encoder: nn.Module,
                    variables: dict, log: Callable[[str], None] = print) -> np.memmap:
  """Returns the features of a split, float16 [n, V, P, C], computed if they aren't there yet.

  Args:
    config: `data.data_dir` is where they are kept; below the temporary folder if it is not on a local disk.
    split_name: train, val or test.
    split: records with `images`, a list of JPEG bytes; the first `data.num_views` count.
    encoder, variables: a module of `make_encoder(config.encoder.name)` and its weights.
    show: receives lines of progress.

  Raises:
    UserError: no space, or the folder can't be written.
  """
  per_image = jax.eval_shape(lambda: encode_images(encoder, config, variables, _blank(config, 1))).shape[1:]
  shape = (len(split), config.data.num_views, *per_image)
  path = _folder(config, split, variables) / f"{split_name}.npy"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _is_whole(path, shape):
      _compute(path, shape, config, split, encoder, variables, log)
    return np.load(path, mmap_mode="r")
  except OSError as error:
    if error.errno == errno.ENOSPC:
      _unfinished(path).unlink(missing_ok=True)
      size = f"{2 * math.prod(shape) / 1e9:.2f} GB"
      raise UserError(f"no space for the features of {split_name} in {path.parent}: they take up to {size}; "
                      "free some, or set --config.data.data_dir") from error
    raise UserError(f"{path}: features can't be kept there ({error.strerror or error}); "
                    "set --config.data.data_dir") from error


def pooled(features: np.ndarray) -> np.ndarray:
  """Returns float32 [n, C]: the mean over the patches of the first view of features [n, V, P, C]."""
  result = np.zeros((len(features), features.shape[-1]), np.float32)
  for start in range(0, len(features), 256):           # a memory map may be larger than the memory
    result[start:start + 256] = features[start:start + 256, 0].astype(np.float32).mean(1)
  return result


def pooled_features(config: ConfigDict, split: Sequence[dict], encoder: nn.Module, variables: dict,
                    log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [n, C] as `pooled` does, without keeping the patches; zeros where there is no image."""
  result = np.zeros((len(split), ENCODERS[config.encoder.name].channels), np.float32)
  encode = lambda variables, batch: encode_images(encoder, config, variables, batch).mean(1)
  for slots, means in _encoded_images(config, split, 1, 0, encode, variables, "pooled features", log):
    result[slots] = means
  return result


def pooled_images(config: ConfigDict, studies: Sequence[dict], encoder: nn.Module, variables: dict,
                  log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [M, C], the mean over the patches of each view that the model sees of some studies."""
  encode = lambda variables, batch: encode_images(encoder, config, variables, batch).mean(1)
  return np.concatenate([means for _, means in _encoded_images(
      config, studies, config.data.num_views, 0, encode, variables, "pooled features", log)])


def split_features(work: Workdir, split: Split, log: Callable[[str], None] = print) -> np.ndarray | None:
  """Returns the cached features [n, V, P, C] of a split where the workdir's encoder is frozen, else None."""
  if not work.config.encoder.frozen:
    return None
  encoder = make_encoder(work.config.encoder.name)
  return cached_features(work.config, split.name, split, encoder, work.encoder_variables, log=log)


def split_pooled_features(work: Workdir, split: Split, log: Callable[[str], None] = print) -> np.ndarray:
  """Returns the first view's pooled features [n, C] by the encoder as it was before training."""
  if work.config.encoder.frozen:
    return pooled(split_features(work, split, log))
  encoder = make_encoder(work.config.encoder.name)
  return pooled_features(work.config, split, encoder, work.encoder_variables or init_encoder_variables(work.config))


def features_for_all(work: Workdir, split: Split, stop: PreemptionGuard, watchdog: Watchdog, log) -> np.ndarray | None:
  """Returns the cached features of a split; host 0 computes them where all hosts share a disk."""
  if "://" in work.config.data.data_dir:           # then each host keeps its own
    with stop.immediate():
      features = split_features(work, split, log)
    with watchdog.paused("waiting for the features of other hosts"):
      multihost.barrier()
    return features
  with watchdog.paused_unless_host0():
    return multihost.host0_then_others(lambda: split_features(work, split, log), context=stop.immediate)


def _compute(path: pathlib.Path, shape: tuple[int, ...], config: ConfigDict, split: Sequence[dict],
             encoder: nn.Module, variables: dict, log: Callable[[str], None]) -> None:
  """Writes the file `path`, or what is missing of an unfinished one."""
  header, slot_bytes = _header(shape), 2 * math.prod(shape[2:])
  with open(os.open(_unfinished(path), os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
    # Of runs that start together, or hosts that share a disk, one computes and the others wait here.
    try:
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      log(f"{path.parent} can't be locked ({error.strerror}): of runs that start together each computes the features")
    if not _unfinished(path).exists() or not os.path.samefile(file.fileno(), _unfinished(path)):
      return                                        # another has finished or given up meanwhile
    if file.read(len(header)) != header:
      file.truncate(0)
      file.seek(0)
      file.write(header)
    done = (file.seek(0, os.SEEK_END) - len(header)) // slot_bytes
    encode = lambda variables, batch: encode_images(encoder, config, variables, batch).astype("float16")
    label = f"features of {path.stem}"
    for slots, features in _encoded_images(config, split, shape[1], done, encode, variables, label, log):
      for slot, image_features in zip(slots, features):
        file.seek(len(header) + slot * slot_bytes)
        _write_all(file, image_features.tobytes())
    file.truncate(len(header) + 2 * math.prod(shape))
    with contextlib.suppress(FileNotFoundError):    # another has, where there are no locks
      os.replace(_unfinished(path), path)


def _encoded_images(config: ConfigDict, split: Sequence[dict], num_views: int, start: int, encode: Callable,
                    variables: dict, label: str, log: Callable[[str], None]) -> Iterator:
  """Yields (slots, encoded) of the images of a split in order, present views alone, in full batches.

  A slot is the number `study * num_views + view`; those before `start` are left out. `encode(variables,
  uint8 [M, S, S, 1])` is jitted over this host's devices; slots is a list of up to M and encoded as long.
  """
  devices = np.array(jax.local_devices())
  mesh = Mesh(devices, ("images",))
  split_over_devices = NamedSharding(mesh, PartitionSpec("images"))
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  encode = jax.jit(encode)
  batch = _blank(config, BATCH * devices.size)

  def decoded(first: int) -> list[tuple[int, np.ndarray]]:
    jpegs = [(study * num_views + view, jpeg) for study in studies[first:first + STUDIES_A_THREAD]
             for view, jpeg in enumerate(split[study]["images"][:num_views])]
    return [(slot, images.decode(jpeg, config.data.image_size)) for slot, jpeg in jpegs if slot >= start]

  studies = range(start // num_views, len(split))
  blocks = ordered_map(decoded, range(0, len(studies), STUDIES_A_THREAD), config.train.host_threads)
  pairs = itertools.chain.from_iterable(blocks)
  started = shown = time.monotonic()
  count = 0
  while group := list(itertools.islice(pairs, len(batch))):
    slots, pixels = zip(*group)
    batch[:len(group)] = pixels
    with jax.set_mesh(mesh):                    # whatever mesh a run has over all hosts
      encoded = np.asarray(encode(variables, jax.device_put(batch, split_over_devices)))
    yield list(slots), encoded[:len(group)]
    count += len(group)
    now, last = time.monotonic(), len(group) < len(batch) or slots[-1] // num_views == len(split) - 1
    if last or now - shown > SECONDS_A_LINE:
      studies_done = slots[-1] // num_views + 1
      left = (now - started) * (len(split) - studies_done) / max(studies_done - studies.start, 1)
      log(f"{label}: {studies_done}/{len(split)} studies  {count / (now - started):.1f} images/s  "
           f"{left / 60:.1f} min left")
      shown = now


def encode_images(encoder: nn.Module, config: ConfigDict, variables: dict, batch: jax.Array) -> jax.Array:
  """Returns the features [M, P, C] of uint8 images [M, S, S, 1]."""
  features = encoder.apply(variables, normalize_images(batch[None], config.encoder.name)[0])
  return features.reshape(features.shape[0], -1, features.shape[-1])


def _blank(config: ConfigDict, count: int) -> np.ndarray:
  return np.zeros((count, config.data.image_size, config.data.image_size, 1), np.uint8)


def _folder(config: ConfigDict, split: Sequence[dict], variables: dict) -> pathlib.Path:
  """Returns the folder whose name changes with everything that the features depend on."""
  data = config.data
  digest = hashlib.sha256(json.dumps([
      VERSION, config.encoder.name, weights_digest(variables), data.image_size, data.num_views,
      *([data.target, data.min_words] if data.min_words else []),      # choose which studies there are
      str(dataset_dir(config)).removeprefix(str(data.data_dir))]).encode())    # its name holds all settings
  # Data prepared anew below the same name: a few dozen records tell.
  for study in np.linspace(0, len(split) - 1, min(len(split), 32)).astype(int):
    digest.update(b"".join(split[int(study)]["images"]))
  # A memory map needs a file system, which a bucket isn't.
  root = f"{tempfile.gettempdir()}/mcsam" if "://" in data.data_dir else data.data_dir
  return pathlib.Path(root) / "features" / digest.hexdigest()[:16]


def _unfinished(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".unfinished")


def _header(shape: tuple[int, ...]) -> bytes:
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
  return buffer.getvalue()


def _is_whole(path: pathlib.Path, shape: tuple[int, ...]) -> bool:
  """Tells whether a file has the header and the length that features of `shape` need."""
  header = _header(shape)
  if not path.exists() or path.stat().st_size != len(header) + 2 * math.prod(shape):
    return False
  with open(path, "rb") as file:
    return file.read(len(header)) == header


def _write_all(file: io.FileIO, data: bytes) -> None:
  """Writes all of `data`: an unbuffered file may take a part, and says that the disk is full at the next."""
  while data:
    data = data[file.write(data):]
