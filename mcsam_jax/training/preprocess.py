"""What happens to images inside the jitted step: augmentation, normalisation, the copy to three channels.

Hosts send uint8 with one channel, a twelfth of what the encoder reads. How a study is augmented depends on
(seed, record, epoch) alone, never on its place in a batch or the number of devices, so that a resumed run
sees what an uninterrupted one would have.

Every view gets a draw of its own: frontal and lateral are two exposures, each positioned by hand. Nothing
is mirrored, because reports tell left from right.

Shapes: B studies, V views, S pixels.
"""

import functools

import jax
import jax.numpy as jnp

from mcsam_jax.models.visual_encoder import ENCODERS

MIN_CROP = 0.85                    # of the image's side; the crop is scaled back to S
MAX_ANGLE = 7 * jnp.pi / 180
MAX_BRIGHTNESS = 0.1               # shift, as a share of the range from black to white
MAX_CONTRAST = 0.2                 # stretch about the image's mean: 0.8 to 1.2


def preprocess(images: jax.Array, encoder_name: str) -> jax.Array:
  """Returns images [B, V, S, S, 1], 0 to 255, as the encoder expects them: float32 [B, V, S, S, 3]."""
  spec = ENCODERS[encoder_name]
  mean, std = jnp.array(spec.mean), jnp.array(spec.std)
  return (images.astype(jnp.float32) / 255 - mean) / std


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
    return relight(light, crop_and_turn(place, image[..., 0].astype(jnp.float32)))[..., None]

  over_views = jax.vmap(one_view, (0, 0, None, None))
  return jax.vmap(over_views, (None, 0, 0, 0))(views, images, record, epoch)


def crop_and_turn(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns a random, slightly turned square of an image [S, S], by one bilinear look-up a pixel."""
  size = image.shape[0]
  scale, angle, *shift = jax.random.uniform(key, (4,), minval=-1)
  scale = (1 + MIN_CROP) / 2 + scale * (1 - MIN_CROP) / 2
  rows, columns = jnp.mgrid[:size, :size] - (size - 1) / 2               # from the centre
  sine, cosine = jnp.sin(MAX_ANGLE * angle), jnp.cos(MAX_ANGLE * angle)
  # The crop stays inside the image; only what the turn brings in from outside repeats the edge.
  shift = jnp.array(shift) * (1 - scale) / 2 * size + (size - 1) / 2
  source = (scale * (cosine * rows - sine * columns) + shift[0],
            scale * (sine * rows + cosine * columns) + shift[1])
  return jax.scipy.ndimage.map_coordinates(image, source, order=1, mode="nearest")


def relight(key: jax.Array, image: jax.Array) -> jax.Array:
  """Returns an image [S, S], 0 to 255, with random brightness and contrast; a black one stays black."""
  brightness, contrast = jax.random.uniform(key, (2,), minval=-1)
  mean = image.mean()
  changed = (image - mean) * (1 + MAX_CONTRAST * contrast) + mean + 255 * MAX_BRIGHTNESS * brightness
  return jnp.where(image.max() > 0, jnp.clip(changed, 0, 255), 0)
