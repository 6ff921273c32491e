"""Augmentation is a function of (seed, record, epoch), mild, and black stays black."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.training import augment as module
from mcsam_jax.training.augment import augment

jitted = jax.jit(augment)


def studies(count=4, size=32):
  rng = np.random.default_rng(0)
  blocks = rng.integers(30, 220, (count, 2, size // 8, size // 8, 1), np.uint8)
  return blocks.repeat(8, axis=2).repeat(8, axis=3)


def test_normalisation_of_the_encoders():
  images = jnp.array([0, 127, 255], jnp.uint8).reshape(3, 1, 1, 1, 1)
  lite = normalize_images(images, "efficientnet_lite0")
  np.testing.assert_allclose(lite[:, 0, 0, 0], [[-127 / 128] * 3, [0] * 3, [1] * 3], atol=1e-6)
  imagenet = normalize_images(images, "resnet50")            # as torchvision's ToTensor and Normalize
  np.testing.assert_allclose(imagenet[2, 0, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)
  assert imagenet.dtype == jnp.float32


def test_a_study_is_augmented_alike_in_any_batch():
  images, record, epoch = studies(), jnp.array([3, 1, 4, 1]), jnp.array([0, 0, 2, 1])
  whole = jitted(images, 5, record, epoch)
  order = np.array([2, 0])
  # Another batch size is another program, which may round in another order.
  np.testing.assert_allclose(whole[order], jitted(images[order], 5, record[order], epoch[order]), atol=2e-3)


def test_records_epochs_seeds_and_views_differ():
  image = np.broadcast_to(studies(1)[:, :1], (1, 2, 32, 32, 1))
  draw = lambda seed, record, epoch: np.asarray(jitted(image, seed, jnp.array([record]), jnp.array([epoch])))
  first = draw(0, 1, 2)
  assert np.array_equal(first, draw(0, 1, 2))
  for other in (draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3), draw(0, 2, 1), first[:, ::-1]):
    assert np.abs(first - other).mean() > 1


def test_absent_views_stay_black():
  images = studies()
  images[:, 1] = 0
  changed = jitted(images, 0, jnp.arange(4), jnp.zeros(4, jnp.int32))
  assert not changed[:, 1].any() and changed[:, 0].all()


def test_without_crop_angle_and_light_nothing_changes(monkeypatch):
  for name, value in (("MIN_CROP", 1.0), ("MAX_ANGLE", 0.0), ("MAX_BRIGHTNESS", 0.0), ("MAX_CONTRAST", 0.0)):
    monkeypatch.setattr(module, name, value)
  images = studies()
  same = jax.jit(lambda *args: augment(*args))(images, 0, jnp.arange(4), jnp.arange(4))
  np.testing.assert_allclose(same, images, atol=0.1)


def test_the_crop_keeps_the_centre_and_the_orientation():
  # A ramp from left to right and one from top to bottom: slope tells scale and angle, mean the shift.
  ramp = np.broadcast_to(np.arange(64, dtype=np.float32), (64, 64))
  for number in range(20):
    key = jax.random.key(number)
    across, down = module.crop_and_turn(key, jnp.array(ramp)), module.crop_and_turn(key, jnp.array(ramp.T))
    centre = np.s_[24:40, 24:40]
    slope_x, slope_y = np.gradient(across)[1][centre].mean(), np.gradient(down)[0][centre].mean()
    tilt = np.gradient(across)[0][centre].mean()
    assert slope_x == pytest.approx(slope_y, abs=1e-3)
    assert 0.85 - 1e-3 <= np.hypot(slope_x, tilt) <= 1 + 1e-3
    assert abs(np.degrees(np.arctan2(tilt, slope_x))) <= 7.01
    assert abs(across[31:33, 31:33].mean() - 31.5) <= 0.075 * 64 + 1e-2


def test_a_turned_ramp_is_a_ramp_in_another_direction():
  """Bilinear weights keep linear functions: away from the edges the source of (r, c) is known exactly."""
  size, angle = 64, np.radians(6)
  rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
  turned = module.turn(jnp.asarray(3 * columns + 5 * rows, jnp.float32), jnp.float32(angle), module.MAX_ANGLE)
  source = (np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns)
  inside = np.s_[12:-12, 12:-12]
  np.testing.assert_allclose(turned[inside], (3 * source[1] + 5 * source[0])[inside], atol=1e-3)
