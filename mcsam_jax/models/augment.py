"""Augments images inside jitted functions: random crop, small rotation, brightness and contrast.

The augmentation of a study is a pure function of (seed, record, epoch). It depends neither on the position in the batch
nor on the number of devices, so a resumed run sees the same images as an uninterrupted one.

Each view is augmented independently: frontal and lateral are two exposures, each positioned by hand. Images are never
mirrored, because reports distinguish left from right.

Shapes: B studies, V views, P pixels per side.
"""

import functools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

VERSION = 1                        # increase it when the same arguments would give other images
CACHE_SEED = 0                     # seed of augmented images whose features are cached, and shared by all runs
MIN_CROP = 0.85                    # side of the smallest crop, as a fraction of the image's side
MAX_ANGLE = 7 * math.pi / 180      # radians
MAX_BRIGHTNESS = 0.1               # largest shift, as a fraction of the range from black to white
MAX_CONTRAST = 0.2                 # contrast about the image's mean is scaled by 0.8 to 1.2


def augment_batch(config: ConfigDict, batch: dict) -> dict:
  """Returns a batch with augmented images, if `data.augment` is on and it holds images rather than features."""
  if not config.data.augment or "images" not in batch:
    return batch
  return batch | {"images": augment(batch["images"], config.seed, batch["record"], batch["epoch"])}


def augment(images: jax.Array, seed: int, record: jax.Array, epoch: jax.Array) -> jax.Array:
  """Returns images [B, V, P, P, 1] randomly cropped, rotated and changed in brightness and contrast.

  Args:
    images: uint8 [B, V, P, P, 1], 0 to 255; absent views are black and stay black.
    seed: the run's seed.
    record: int [B], each record's index in its split.
    epoch: int [B], the epoch in which each record is shown.

  Returns:
    float32 [B, V, P, P, 1], 0 to 255.
  """
  augment_study = jax.vmap(functools.partial(augment_view, seed), (0, 0, None, None))
  return jax.vmap(augment_study, (None, 0, 0, 0))(jnp.arange(images.shape[1]), images, record, epoch)


def augment_view(seed: int, view: jax.Array, image: jax.Array, record: jax.Array, epoch: jax.Array) -> jax.Array:
  """Returns what `augment` makes of one view [P, P, 1] of a record; `view`, `record` and `epoch` are scalars."""
  key = functools.reduce(jax.random.fold_in, (record, epoch, view), jax.random.key(seed))
  geometry_key, intensity_key = jax.random.split(key)
  cropped = crop_and_rotate(geometry_key, image[..., 0].astype(jnp.float32))
  return jitter_brightness_contrast(intensity_key, cropped)[..., None]


def crop_and_rotate(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns a random, slightly rotated square crop of an image [P, P], resized back to [P, P].

  Interpolation is bilinear, and consists of matrix products and shifts of whole rows: gathering individual pixels is
  slow on TPUs.
  """
  size = image.shape[0]
  scale, angle, *shifts = jax.random.uniform(key, (4,), minval=-1)
  scale = (1 + MIN_CROP) / 2 + scale * (1 - MIN_CROP) / 2
  # The crop lies inside the image, so only the rotation can reach outside; there the edge pixels are repeated.
  row_weights, column_weights = (make_resize_weights(size, scale, shift * (1 - scale) / 2 * size) for shift in shifts)
  cropped = jnp.einsum("ir,rc,jc->ij", row_weights, image, column_weights, precision="highest")
  return rotate(cropped, MAX_ANGLE * angle, MAX_ANGLE)


def make_resize_weights(size: int, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """Returns bilinear weights [P, P]: row i interpolates the source pixels of output pixel i.

  The source coordinate of i is i scaled about the center and shifted by `shift` pixels.
  """
  center = (size - 1) / 2
  source = jnp.clip(scale * (jnp.arange(size) - center) + center + shift, 0, size - 1)
  return jnp.maximum(0, 1 - jnp.abs(source[:, None] - jnp.arange(size)))


def rotate(image: jax.Array, angle: jax.Array, max_angle: float) -> jax.Array:
  """Returns an image [P, P] rotated about its center by three shears (Paeth, 1986).

  Args:
    angle: radians, at most `max_angle` in absolute value.
    max_angle: radians, known at compile time: it bounds how far a row moves.
  """
  slope_x, max_slope_x = jnp.tan(angle / 2), math.tan(max_angle / 2)
  slope_y, max_slope_y = jnp.sin(angle), math.sin(max_angle)
  image = shear(image, slope_x, max_slope_x)
  image = shear(image.T, -slope_y, max_slope_y).T
  return shear(image, slope_x, max_slope_x)


def shear(image: jax.Array, slope: jax.Array, max_slope: float) -> jax.Array:
  """Returns an image [P, P] whose row r is shifted left by slope * (r - center) pixels; edge pixels are repeated.

  Each row has its own shift. The whole pixels of the shifts are applied bit by bit: for each bit all rows are shifted
  by the same power of two, and each row selects the shifted or the unshifted version. The fraction is interpolated.
  """
  size = image.shape[0]
  max_shift = math.ceil(max_slope * (size - 1) / 2)
  num_bits = (2 * max_shift).bit_length()
  shifts = slope * (jnp.arange(size) - (size - 1) / 2) + max_shift                        # [P], all >= 0
  pixels = jnp.floor(shifts).astype(jnp.int32)
  image = jnp.pad(image, ((0, 0), (max_shift, 2**num_bits - max_shift)), mode="edge")     # [P, P + 2^num_bits]
  for bit in range(num_bits):
    image = jnp.where((pixels >> bit & 1)[:, None] == 1, image[:, 1 << bit:], image[:, :-(1 << bit)])
  fraction = (shifts - pixels)[:, None]
  return (1 - fraction) * image[:, :-1] + fraction * image[:, 1:]                         # [P, P]


def jitter_brightness_contrast(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns an image [P, P], 0 to 255, with random brightness and contrast; a black image stays black."""
  brightness, contrast = jax.random.uniform(key, (2,), minval=-1)
  mean = image.mean()
  jittered = (image - mean) * (1 + MAX_CONTRAST * contrast) + mean + 255 * MAX_BRIGHTNESS * brightness
  return jnp.where(image.max() > 0, jnp.clip(jittered, 0, 255), 0)
