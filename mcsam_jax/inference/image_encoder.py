"""Encodes the images of many studies with a frozen or untrained image encoder, on all devices of this host.

With `encoder.trained_stages` the encoder may be its frozen stages alone, and features are their output.

Shapes: n records, V views, P patches per view, C channels, M images, S image size in pixels.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import functools
import itertools
from typing import Any, TypeVar

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.splits import Split
from mcsam_jax.extensions.by_name import is_import_name
from mcsam_jax.files.trace_cache import keep_program
from mcsam_jax.models.augment import augment_view, CACHE_SEED
from mcsam_jax.models.inputs import make_feature_maps, normalize_images
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_trained_stages
from mcsam_jax.progress import ProgressLog

Item = TypeVar("Item")
Result = TypeVar("Result")
BATCH_SIZE = 32              # images per device
CPU_THREADS = 2              # batches at a time on a CPU: one alone leaves half the cores idle most of the time


def encode_images(encoder: nn.Module, config: ConfigDict, variables: dict, pixels: jax.Array) -> jax.Array:
  """Returns the features [M, P, C] of images [M, S, S, 1] in 0..255.

  Args:
    encoder: the module `make_encoder(config.encoder.name)`, or `make_frozen_stages(config)`.
    variables: its variables.
  """
  features = encoder.apply(variables, normalize_images(pixels[None], config.encoder.name)[0])
  assert isinstance(features, jax.Array)
  return features.reshape(features.shape[0], -1, features.shape[-1])


def make_feature_fn(encoder: nn.Module, config: ConfigDict, num_devices: int) -> Callable[[dict, Any], jax.Array]:
  """Returns the jitted `encode_images` of (variables, pixels), whose features are float16, as they are stored."""
  depends_on = None
  if num_devices == 1 and not is_import_name(config.encoder.name):
    depends_on = [config.encoder.name, config.data.image_size, config.encoder.trained_stages]
  encode = lambda variables, pixels: encode_images(encoder, config, variables, pixels).astype("float16")
  return keep_program(encode, "encode-images", depends_on)


def make_augmented_feature_fn(encoder: nn.Module, config: ConfigDict,
                              version: int) -> Callable[[dict, Any, Any], jax.Array]:
  """Returns a jitted function of (variables, pixels, slots): the float16 features of augmented images.

  The images are those that training with the seed CACHE_SEED and `data.augment` sees in epoch `version`. Slots
  are those of `encode_records`.
  """
  @jax.jit
  def encode(variables: dict, pixels: jax.Array, slots: jax.Array, version: jax.Array) -> jax.Array:
    records, views = slots // config.data.num_views, slots % config.data.num_views
    augment = jax.vmap(functools.partial(augment_view, CACHE_SEED), (0, 0, 0, None))
    return encode_images(encoder, config, variables, augment(views, pixels, records, version)).astype("float16")

  # An argument, because all versions are computed by the same program.
  return lambda variables, pixels, slots: encode(variables, pixels, slots, np.int32(version))


def make_pool_fn(config: ConfigDict, variables: dict | None) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from float16 features [M, P, C] to their means over the patches, float32 [M, C].

  If only the first stages are frozen, the features are their output, and the last stages as they were before training
  are applied first.

  Args:
    variables: of the pretrained encoder; only read in that case.
  """
  if not config.encoder.trained_stages:
    return lambda features: features.astype(np.float32).mean(1)
  stages, variables = make_trained_stages(config), jax.device_put(variables)

  @jax.jit
  def pool(variables: dict, features: jax.Array) -> jax.Array:
    output = stages.apply(variables, make_feature_maps(features.astype("float32")))
    assert isinstance(output, jax.Array)
    return output.mean((1, 2))

  def pool_batches(features: np.ndarray) -> np.ndarray:
    pooled = np.zeros((len(features), find_encoder(config.encoder.name).channels), np.float32)
    for start in range(0, len(features), BATCH_SIZE):
      batch = features[start:start + BATCH_SIZE]
      padded = np.pad(batch, ((0, BATCH_SIZE - len(batch)), (0, 0), (0, 0)))
      pooled[start:start + BATCH_SIZE] = pool(variables, padded)[:len(batch)]
    return np.where(np.asarray(features.any((1, 2)))[:, None], pooled, 0)             # absent views stay zeros

  return pool_batches


def _make_pooled_feature_fn(encoder: nn.Module, config: ConfigDict) -> Callable[[dict, Any, Any], jax.Array]:
  """Returns the jitted function for `encode_records` whose results are features averaged over the patches, [M, C]."""
  return jax.jit(lambda variables, pixels, slots: encode_images(encoder, config, variables, pixels).mean(1))


def compute_pooled_features(config: ConfigDict, split: Split, encoder: nn.Module, variables: dict,
                            log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [n, C]: the features of each study's first view, averaged over the patches; 0 without images."""
  pooled = np.zeros((len(split), find_encoder(config.encoder.name).channels), np.float32)
  pool = _make_pooled_feature_fn(encoder, config)
  for slots, batch in encode_records(config, split, range(len(split)), 1, pool, variables, "pooled features", log):
    pooled[slots] = batch
  return pooled


def compute_pooled_views(config: ConfigDict, split: Split, records: Sequence[int], encoder: nn.Module,
                         variables: dict, log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [M, C]: the features of each view of `records` that the model sees, averaged over the patches."""
  pool = _make_pooled_feature_fn(encoder, config)
  return np.concatenate([batch for _, batch in encode_records(
      config, split, records, config.data.num_views, pool, variables, "pooled features", log)])


def encode_records(config: ConfigDict, split: Split, records: Sequence[int], num_views: int, encode: Callable,
                   variables: dict, label: str, log: Callable[[str], None], first_slot: int = 0
                   ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (slots, features) of all images in order, in full batches; only the last one may be shorter.

  The slot of an image is num_views * (position of its record in `records`) + view. Absent views have no image.

  Args:
    split: the records.
    records: which of them to encode.
    num_views: images per record, at most.
    encode: function (variables, uint8 [M, S, S, 1], slots int32 [M]) -> [M, ...].
    label: name of the task in lines of progress.
    log: receives these lines.
    first_slot: earlier images are skipped.
  """
  from input_pipeline.pipeline import image_batches  # not at the top: it imports TensorFlow
  devices = np.array(jax.local_devices())
  mesh = Mesh(devices, ("images",))
  shard_images = NamedSharding(mesh, PartitionSpec("images"))
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  size = BATCH_SIZE * devices.size
  done, num_images = first_slot // num_views, 0
  progress = ProgressLog(log, label, len(records), "studies", "images", done=done)

  def encode_batch(batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    slots, pixels = batch
    padding = size - len(pixels)
    padded = (np.pad(pixels, ((0, padding), *[(0, 0)] * 3)), np.pad(slots, (0, padding)).astype(np.int32))
    with jax.set_mesh(mesh):                    # not the mesh of the run, which may span several hosts
      return slots, np.asarray(encode(variables, *jax.device_put(padded, shard_images)))[:len(slots)]

  batches = image_batches(split, config, num_views, size, records, first_slot)
  num_threads = CPU_THREADS if devices.size == 1 and devices[0].platform == "cpu" else 1
  for slots, features in map_in_threads(encode_batch, batches, num_threads):
    yield slots, features
    done, num_images = int(slots[-1]) // num_views + 1, num_images + len(slots)
    progress.update(done, num_images)
  if done < len(records):                       # the last records have no images
    progress.update(len(records), num_images)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
  """Yields the results of `function` in the order of `items`, computed by `num_threads` threads at the same time.

  The first item is computed before all others, so that a jitted function is compiled once.
  """
  if num_threads == 1:
    yield from map(function, items)
    return
  items = iter(items)
  yield from map(function, itertools.islice(items, 1))
  with futures.ThreadPoolExecutor(num_threads) as pool:
    running = collections.deque[futures.Future[Result]]()
    for item in items:
      running.append(pool.submit(function, item))
      if len(running) > num_threads:            # one more than there are threads, so that none is idle
        yield running.popleft().result()
    while running:
      yield running.popleft().result()
