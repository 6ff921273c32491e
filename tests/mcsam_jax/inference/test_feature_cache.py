"""Cached features equal the encoder's, are computed once, and survive damage and interruption."""

import errno
import io

import jax
import numpy as np
import PIL.Image
import pytest

from configs import phantom
from input_pipeline.images import decode
from mcsam_jax.errors import UserError
from mcsam_jax.inference import feature_cache, image_encoder
from mcsam_jax.models.augment import augment
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.registry import make_encoder, make_frozen_stages
from tests.testing.fake_split import FakeSplit

IMAGE_SIZE, NUM_VIEWS = 32, 2


def make_jpeg(rng):
  encoded = io.BytesIO()
  PIL.Image.fromarray(rng.integers(0, 255, (40, 36), np.uint8)).save(encoded, "JPEG")
  return encoded.getvalue()


def make_jpegs():
  """Returns the images of 23 studies, zero to three each."""
  rng = np.random.default_rng(0)
  return [[make_jpeg(rng) for _ in range((1, 2, 3, 0)[i % 4])] for i in range(23)]


def make_split():
  return FakeSplit(make_jpegs())


@pytest.fixture(scope="module")
def encoder():
  module = make_encoder("resnet_tiny")
  init = jax.jit(module.init, compiler_options={"xla_backend_optimization_level": 0})   # compiles 7 times faster
  return module, init(jax.random.key(0), np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32))


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setattr(image_encoder, "BATCH_SIZE", 8)   # so that batches and studies don't align
  config = phantom.get_config()
  config.encoder.name = "resnet_tiny"
  config.data.data_dir, config.data.image_size, config.data.num_views = str(tmp_path), IMAGE_SIZE, NUM_VIEWS
  return config


@pytest.fixture(scope="module")
def expected(encoder):
  module, variables = encoder
  features = np.zeros((23, NUM_VIEWS, 4, 128), np.float32)
  apply = jax.jit(lambda image: module.apply(variables, normalize_images(image[None, None], "resnet_tiny")[0]))
  for study, images in enumerate(make_jpegs()):
    for view, image in enumerate(images[:NUM_VIEWS]):
      features[study, view] = np.asarray(apply(decode(image, IMAGE_SIZE))).reshape(4, 128)
  return features


def load_features(config, split, encoder, log=lambda line: None, version=None):
  return feature_cache.load_or_compute_features(config, split, *encoder, log, version)


def list_cache_files(config):
  """Returns the paths of all cached files."""
  return sorted(feature_cache.pathlib.Path(config.data.data_dir).glob("features/*/*"))


def test_features_equal_the_encoder_and_are_computed_once(config, encoder, expected):
  split, lines = make_split(), []
  features = load_features(config, split, encoder, lines.append)
  assert features.dtype == np.float16
  np.testing.assert_allclose(features, expected, atol=2e-3, rtol=2e-3)
  assert not features[3].any() and not features[0, 1].any() and features[0, 0].any()
  assert "23/23 studies" in lines[-1] and "images/s" in lines[-1]
  assert [path.name for path in list_cache_files(config)] == ["val.npy"]
  lines.clear()
  np.testing.assert_array_equal(load_features(config, split, encoder, lines.append), features)
  assert not lines


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: b"\0" * 10 + data[10:], lambda data: b""])
def test_damaged_file_is_computed_again(config, encoder, expected, damage):
  load_features(config, make_split(), encoder)
  path, = list_cache_files(config)
  path.write_bytes(damage(path.read_bytes()))
  np.testing.assert_allclose(load_features(config, make_split(), encoder), expected, atol=2e-3, rtol=2e-3)


def test_computation_continues_where_it_was_interrupted(config, encoder, expected, monkeypatch):
  write, written = feature_cache._write_all, []

  def interrupted(file, data):
    if len(written) == 18:
      write(file, data[:100])                 # in the middle of a slot
      raise KeyboardInterrupt
    written.append(write(file, data))

  monkeypatch.setattr(feature_cache, "_write_all", interrupted)
  with pytest.raises(KeyboardInterrupt):
    load_features(config, make_split(), encoder)
  assert [path.name for path in list_cache_files(config)] == ["val.npy.unfinished"]
  monkeypatch.setattr(feature_cache, "_write_all", lambda file, data: written.append(write(file, data)))
  np.testing.assert_allclose(load_features(config, make_split(), encoder), expected, atol=2e-3, rtol=2e-3)
  assert len(written) == sum(min(NUM_VIEWS, len(images)) for images in make_jpegs())


def test_disk_without_locks_is_used_with_a_warning(config, encoder, expected, monkeypatch):
  def flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  replace = feature_cache.os.replace

  def replace_twice(source, target):
    replace(source, target)                   # another run was faster
    replace(source, target)
  monkeypatch.setattr(feature_cache.fcntl, "flock", flock)
  monkeypatch.setattr(feature_cache.os, "replace", replace_twice)
  lines = []
  features = load_features(config, make_split(), encoder, lines.append)
  np.testing.assert_allclose(features, expected, atol=2e-3, rtol=2e-3)
  assert "No locks available" in lines[0] and [path.name for path in list_cache_files(config)] == ["val.npy"]


def test_full_disk_is_an_error_and_leaves_no_file(config, encoder, monkeypatch):
  def full(file, data):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(feature_cache, "_write_all", full)
  with pytest.raises(UserError, match="no space .* val"):
    load_features(config, make_split(), encoder)
  assert not list_cache_files(config)


def test_features_beyond_float16_are_an_error_that_names_the_record(config, encoder):
  module, variables = encoder
  huge = jax.tree.map(lambda array: array * 1e5, variables)
  with pytest.raises(UserError, match="resnet_tiny gives image 1 of record 0 of split val features that float16 can't"):
    load_features(config, make_split(), (module, huge))


def test_other_weights_images_or_sizes_have_other_files(config, encoder):
  module, variables = encoder
  load_features(config, make_split(), encoder)
  load_features(config, make_split(), (module, jax.tree.map(lambda leaf: leaf + 0.01, variables)))
  jpegs = make_jpegs()
  jpegs[0][0] = make_jpeg(np.random.default_rng(1))
  load_features(config, FakeSplit(jpegs), encoder)
  config.data.image_size = 48
  load_features(config, make_split(), encoder)
  assert len(list_cache_files(config)) == 4


def test_augmented_versions_are_those_that_training_would_see(config, encoder):
  module, variables = encoder
  first, second = (load_features(config, make_split(), encoder, version=version) for version in (0, 1))
  files = [path.name for path in list_cache_files(config)]
  assert files == ["val_augmented0.npy", "val_augmented1.npy"]
  plain = load_features(config, make_split(), encoder)
  assert len({path.parent for path in list_cache_files(config)}) == 2 and (first != second).any()
  jitted_augment = jax.jit(augment)
  encode = jax.jit(lambda images: module.apply(variables, normalize_images(images, "resnet_tiny")[:, 0]))
  for study, view in ((1, 0), (1, 1), (22, 1)):
    images = np.stack([decode(image, IMAGE_SIZE) for image in make_jpegs()[study][:NUM_VIEWS]])[None]
    for version, features in enumerate((first, second)):
      augmented = jitted_augment(images, 0, np.array([study]), np.array([version]))
      expected = np.asarray(encode(augmented[:, view:view + 1])).reshape(4, 128)
      np.testing.assert_allclose(features[study, view], expected, atol=5e-3, rtol=5e-3)
      assert np.abs(features[study, view] - plain[study, view]).max() > 0.01
  assert not first[3].any() and not first[0, 1].any()


def test_outputs_of_frozen_stages_have_files_of_their_own(config, encoder):
  _, variables = encoder
  whole = load_features(config, make_split(), encoder)
  config.encoder.frozen, config.encoder.trained_stages = True, 2
  output = load_features(config, make_split(), (make_frozen_stages(config), variables))
  assert output.shape == (23, NUM_VIEWS, 16, 32) and len(list_cache_files(config)) == 2
  pooled = feature_cache.pool_first_view(output, image_encoder.make_pool_fn(config, variables))
  np.testing.assert_allclose(pooled[[1, 2, 22]], whole[[1, 2, 22], 0].astype(np.float32).mean(1), atol=2e-3, rtol=2e-2)


def test_pooled_features_are_the_mean_of_the_first_view(config, encoder, expected):
  reference = expected[:, 0].mean(1)
  from_cache = feature_cache.pool_first_view(load_features(config, make_split(), encoder),
                                             image_encoder.make_pool_fn(config, None))
  np.testing.assert_allclose(from_cache, reference, atol=2e-3)
  direct = image_encoder.compute_pooled_features(config, make_split(), *encoder, log=[].append)
  assert from_cache.dtype == direct.dtype == np.float32
  np.testing.assert_allclose(direct, reference, atol=1e-5)


def test_a_link_in_the_place_of_unfinished_features_is_not_emptied(tmp_path):
  thesis, path = tmp_path / "thesis.txt", tmp_path / "val.npy"
  thesis.write_text("three years of work")
  feature_cache._unfinished_path(path).symlink_to(thesis)
  with pytest.raises(OSError):
    feature_cache._write_features(path, (1, 1, 1, 1), None, None, None, {}, print, None)
  assert thesis.read_text() == "three years of work"
