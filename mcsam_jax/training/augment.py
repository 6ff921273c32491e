"""Augments images inside the jitted step: random crop, small rotation, brightness and contrast.

How a study is augmented depends on
(seed, record, epoch) alone, never on its place in a batch or the number of devices, so that a resumed run
sees what an uninterrupted one would have.

Every view gets a draw of its own: frontal and lateral are two exposures, each positioned by hand. Nothing
is mirrored, because reports tell left from right.

Shapes: B studies, V views, S pixels.
"""

import functools
import math

import jax
import jax.numpy as jnp

MIN_CROP = 0.85                    # of the image's side; the crop is scaled back to S
MAX_ANGLE = 7 * math.pi / 180
MAX_BRIGHTNESS = 0.1               # shift, as a share of the range from black to white
MAX_CONTRAST = 0.2                 # stretch about the image's mean: 0.8 to 1.2


def augment(images: jax.Array, seed: int, record: jax.Array, epoch: jax.Array) -> jax.Array:
  """Returns images uint8 [B, V, S, S, 1] cropped, turned, and changed in light: float32, 0 to 255.

  Args:
    images: what `input_pipeline` gives; absent views are black and stay so.
    seed: of the run.
    record: int [B], number of each record in its split.
    epoch: int [B], the epoch in which it is shown.
  """
  views = jnp.arange(images.shape[1])

  def one_view(view: jax.Array, image: jax.Array, record: jax.Array, epoch: jax.Array) -> jax.Array:
    key = functools.reduce(jax.random.fold_in, (record, epoch, view), jax.random.key(seed))
    place, light = jax.random.split(key)
    return jitter_brightness_contrast(light, crop_and_turn(place, image[..., 0].astype(jnp.float32)))[..., None]

  over_views = jax.vmap(one_view, (0, 0, None, None))
  return jax.vmap(over_views, (None, 0, 0, 0))(views, images, record, epoch)


def crop_and_turn(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns a random, slightly turned square of an image [S, S], scaled back to S.

  Products with matrices of weights and shifts of whole rows, all bilinear: looking pixels up one by one, as a CPU
  would, is what TPUs are slowest at.
  """
  size = image.shape[0]
  scale, angle, *shifts = jax.random.uniform(key, (4,), minval=-1)
  scale = (1 + MIN_CROP) / 2 + scale * (1 - MIN_CROP) / 2
  # The crop stays inside the image; only what the turn brings in from outside repeats the edge.
  down, across = (resampling(size, scale, shift * (1 - scale) / 2 * size) for shift in shifts)
  cropped = jnp.einsum("ir,rc,jc->ij", down, image, across, precision="highest")
  return turn(cropped, MAX_ANGLE * angle, MAX_ANGLE)


def resampling(size: int, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """Returns weights [S, S]: row i has those of the pixels between which i, scaled about the centre and shifted, lies."""
  centre = (size - 1) / 2
  source = jnp.clip(scale * (jnp.arange(size) - centre) + centre + shift, 0, size - 1)
  return jnp.maximum(0, 1 - jnp.abs(source[:, None] - jnp.arange(size)))


def turn(image: jax.Array, angle: jax.Array, largest: float) -> jax.Array:
  """Returns an image [S, S] turned about its centre by `angle` in radians, at most `largest`: three shears (Paeth, 1986)."""
  half, whole = (jnp.tan(angle / 2), math.tan(largest / 2)), (jnp.sin(angle), math.sin(largest))
  image = shear(image, *half)
  image = shear(image.T, -whole[0], whole[1]).T
  return shear(image, *half)


def shear(image: jax.Array, slope: jax.Array, steepest: float) -> jax.Array:
  """Returns an image [S, S] whose row r shows what stood slope * (r - centre) pixels to the right; edges are repeated.

  A row moves by whole pixels bit by bit of their number, each one shift of all rows and a choice for each, then by
  what is left between two pixels.
  """
  size = image.shape[0]
  reach = math.ceil(steepest * (size - 1) / 2)
  num_bits = (2 * reach).bit_length()
  moved = slope * (jnp.arange(size) - (size - 1) / 2) + reach                        # [S], not below 0
  pixels = jnp.floor(moved).astype(jnp.int32)
  image = jnp.pad(image, ((0, 0), (reach, 2**num_bits - reach)), mode="edge")        # [S, S + 2^bits]
  for bit in range(num_bits):
    image = jnp.where((pixels >> bit & 1)[:, None] == 1, image[:, 1 << bit:], image[:, :-(1 << bit)])
  rest = (moved - pixels)[:, None]
  return (1 - rest) * image[:, :-1] + rest * image[:, 1:]                            # [S, S]


def jitter_brightness_contrast(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns an image [S, S], 0 to 255, with random brightness and contrast; a black one stays black."""
  brightness, contrast = jax.random.uniform(key, (2,), minval=-1)
  mean = image.mean()
  changed = (image - mean) * (1 + MAX_CONTRAST * contrast) + mean + 255 * MAX_BRIGHTNESS * brightness
  return jnp.where(image.max() > 0, jnp.clip(changed, 0, 255), 0)
