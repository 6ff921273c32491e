"""Heat maps over a film: the strongest color is where the attention is largest."""

import numpy as np

from mcsam_jax.api.heat_map import COLOR, draw_heat_map, MAX_OPACITY


def test_the_strongest_color_is_in_the_patch_with_the_largest_attention():
  image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
  picture = np.asarray(draw_heat_map(image, np.array([[0.1, 0.3], [0.2, 0.4]]), 32), float)
  np.testing.assert_allclose(picture[-1, -1], (1 - MAX_OPACITY) * image[-1, -1] + MAX_OPACITY * np.array(COLOR), atol=1)
  opacity = (picture[..., 1] - picture[..., 0]) / (COLOR[1] - COLOR[0])
  np.testing.assert_allclose(opacity[0, -1], MAX_OPACITY * 0.75 ** 2, atol=0.01)       # the corner of another patch
  assert opacity[16:, 16:].max() == opacity.max()


def test_without_attention_the_film_is_unchanged():
  image = np.random.default_rng(1).integers(0, 256, (32, 32), np.uint8)
  picture = np.asarray(draw_heat_map(image, np.zeros((4, 4)), 32))
  np.testing.assert_array_equal(picture, np.repeat(image[..., None], 3, -1))
