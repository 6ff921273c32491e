"""Encodes the images of many studies with a frozen or untrained image encoder, on all devices of this host.

Shapes: n studies, V views, P patches per view, C channels, M images, S image size in pixels.
"""

from collections.abc import Callable, Iterator, Mapping
import itertools
from typing import Protocol

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images
from input_pipeline.prefetch import ordered_map
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.registry import ENCODERS
from mcsam_jax.progress import ProgressLog

BATCH_SIZE = 32              # images per device
STUDIES_PER_TASK = 16        # decoded by a thread at a time


class Studies(Protocol):
  """A sequence of records with `images`, a list of JPEG bytes; for example a `Split`."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int, /) -> Mapping:
    ...


def encode_images(encoder: nn.Module, config: ConfigDict, variables: dict, pixels: jax.Array) -> jax.Array:
  """Returns the features [M, P, C] of uint8 images [M, S, S, 1].

  Args:
    encoder: the module `make_encoder(config.encoder.name)`.
    variables: its variables.
  """
  features = encoder.apply(variables, normalize_images(pixels[None], config.encoder.name)[0])
  assert isinstance(features, jax.Array)
  return features.reshape(features.shape[0], -1, features.shape[-1])


def compute_pooled_features(config: ConfigDict, studies: Studies, encoder: nn.Module, variables: dict,
                            log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [n, C]: the features of each study's first view, averaged over the patches; 0 without images."""
  pooled = np.zeros((len(studies), ENCODERS[config.encoder.name].channels), np.float32)
  pool = lambda variables, pixels: encode_images(encoder, config, variables, pixels).mean(1)
  for slots, batch in encode_studies(config, studies, 1, 0, pool, variables, "pooled features", log):
    pooled[slots] = batch
  return pooled


def compute_pooled_views(config: ConfigDict, studies: Studies, encoder: nn.Module, variables: dict,
                         log: Callable[[str], None] = print) -> np.ndarray:
  """Returns float32 [M, C]: the features of each view that the model sees, averaged over the patches."""
  pool = lambda variables, pixels: encode_images(encoder, config, variables, pixels).mean(1)
  return np.concatenate([batch for _, batch in encode_studies(
      config, studies, config.data.num_views, 0, pool, variables, "pooled features", log)])


def encode_studies(config: ConfigDict, studies: Studies, num_views: int, first_slot: int, encode: Callable,
                   variables: dict, label: str, log: Callable[[str], None]) -> Iterator[tuple[list[int], np.ndarray]]:
  """Yields (slots, features) of all images in order, in full batches; only the last one may be shorter.

  The slot of an image is study * num_views + view. Absent views have no image.

  Args:
    studies: their first `num_views` images are encoded.
    first_slot: images before this slot are skipped.
    encode: function (variables, uint8 [M, S, S, 1]) -> [M, ...], jitted here.
    label: name of the task in lines of progress.
    log: receives these lines.
  """
  devices = np.array(jax.local_devices())
  mesh = Mesh(devices, ("images",))
  shard_images = NamedSharding(mesh, PartitionSpec("images"))
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
  encode = jax.jit(encode)
  image_size = config.data.image_size
  pixels = np.zeros((BATCH_SIZE * devices.size, image_size, image_size, 1), np.uint8)
  remaining = range(first_slot // num_views, len(studies))

  def decode_block(start: int) -> list[tuple[int, np.ndarray]]:
    jpegs = [(study * num_views + view, jpeg) for study in remaining[start:start + STUDIES_PER_TASK]
             for view, jpeg in enumerate(studies[study]["images"][:num_views])]
    return [(slot, images.decode(jpeg, image_size)) for slot, jpeg in jpegs if slot >= first_slot]

  blocks = ordered_map(decode_block, range(0, len(remaining), STUDIES_PER_TASK), config.train.host_threads)
  decoded = itertools.chain.from_iterable(blocks)
  progress = ProgressLog(log, label, len(studies), "studies", "images", done=remaining.start)
  num_images = 0
  while batch := list(itertools.islice(decoded, len(pixels))):
    slots, batch_pixels = zip(*batch)
    pixels[:len(batch)] = batch_pixels
    with jax.set_mesh(mesh):                    # not the mesh of the run, which may span several hosts
      features = np.asarray(encode(variables, jax.device_put(pixels, shard_images)))
    yield list(slots), features[:len(batch)]
    num_images += len(batch)
    progress.update(len(studies) if len(batch) < len(pixels) else slots[-1] // num_views + 1, num_images)
