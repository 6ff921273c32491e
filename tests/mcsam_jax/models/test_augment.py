"""Augmentation is a pure function of (seed, record, epoch), stays within its limits, and keeps absent views black."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models import augment as module
from mcsam_jax.models.augment import augment
from mcsam_jax.models.inputs import normalize_images

jitted_augment = jax.jit(augment)


def make_images(num_studies=4, size=32):
  rng = np.random.default_rng(0)
  blocks = rng.integers(30, 220, (num_studies, 2, size // 8, size // 8, 1), np.uint8)
  return blocks.repeat(8, axis=2).repeat(8, axis=3)


def test_images_are_normalized_as_the_encoders_expect():
  images = jnp.array([0, 127, 255], jnp.uint8).reshape(3, 1, 1, 1, 1)
  lite = normalize_images(images, "efficientnet_lite0")
  np.testing.assert_allclose(lite[:, 0, 0, 0], [[-127 / 128] * 3, [0] * 3, [1] * 3], atol=1e-6)
  imagenet = normalize_images(images, "resnet50")            # as torchvision's ToTensor and Normalize
  np.testing.assert_allclose(imagenet[2, 0, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)
  assert imagenet.dtype == jnp.float32


def test_augmentation_does_not_depend_on_the_batch():
  images, record, epoch = make_images(), jnp.array([3, 1, 4, 1]), jnp.array([0, 0, 2, 1])
  augmented = jitted_augment(images, 5, record, epoch)
  order = np.array([2, 0])
  # Another batch size compiles to another program, which may round differently.
  np.testing.assert_allclose(augmented[order], jitted_augment(images[order], 5, record[order], epoch[order]), atol=2e-3)


def test_augmentation_differs_between_records_epochs_seeds_and_views():
  image = np.broadcast_to(make_images(1)[:, :1], (1, 2, 32, 32, 1))
  run = lambda seed, record, epoch: np.asarray(jitted_augment(image, seed, jnp.array([record]), jnp.array([epoch])))
  first = run(0, 1, 2)
  assert np.array_equal(first, run(0, 1, 2))
  for other in (run(1, 1, 2), run(0, 2, 2), run(0, 1, 3), run(0, 2, 1), first[:, ::-1]):
    assert np.abs(first - other).mean() > 1


def test_absent_views_stay_black():
  images = make_images()
  images[:, 1] = 0
  augmented = jitted_augment(images, 0, jnp.arange(4), jnp.zeros(4, jnp.int32))
  assert not augmented[:, 1].any() and augmented[:, 0].all()


def test_zero_limits_change_nothing(monkeypatch):
  for name, value in (("MIN_CROP", 1.0), ("MAX_ANGLE", 0.0), ("MAX_BRIGHTNESS", 0.0), ("MAX_CONTRAST", 0.0)):
    monkeypatch.setattr(module, name, value)
  images = make_images()
  augmented = jax.jit(lambda *args: augment(*args))(images, 0, jnp.arange(4), jnp.arange(4))
  np.testing.assert_allclose(augmented, images, atol=0.1)


def test_scale_angle_and_shift_of_the_crop_stay_within_their_limits():
  # Ramps from left to right and from top to bottom: the slope gives scale and angle, the mean gives the shift.
  ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (64, 64))
  for number in range(20):
    key = jax.random.key(number)
    across, down = module.crop_and_rotate(key, jnp.array(ramp)), module.crop_and_rotate(key, jnp.array(ramp.T))
    center = np.s_[24:40, 24:40]
    slope_x, slope_y = np.gradient(across)[1][center].mean(), np.gradient(down)[0][center].mean()
    tilt = np.gradient(across)[0][center].mean()
    assert slope_x == pytest.approx(slope_y, abs=1e-3)
    assert 0.85 - 1e-3 <= np.hypot(slope_x, tilt) <= 1 + 1e-3
    assert abs(np.degrees(np.arctan2(tilt, slope_x))) <= 7.01
    assert abs(across[31:33, 31:33].mean() - 31.5) <= 0.075 * 64 + 1e-2


def test_a_rotated_ramp_is_a_ramp_in_the_rotated_direction():
  """Bilinear interpolation preserves linear functions, so away from the edges the value at (r, c) is known exactly."""
  size, angle = 64, np.radians(6)
  rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
  rotated = module.rotate(jnp.asarray(3 * columns + 5 * rows, jnp.float32), jnp.float32(angle), module.MAX_ANGLE)
  source = (np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns)
  inside = np.s_[12:-12, 12:-12]
  np.testing.assert_allclose(rotated[inside], (3 * source[1] + 5 * source[0])[inside], atol=1e-3)
