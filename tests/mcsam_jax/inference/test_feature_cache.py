"""The cache equals the encoder, is computed once, survives damage and interruption."""

import errno
import io

import jax
import numpy as np
import PIL.Image
import pytest

from configs import phantom
from input_pipeline.images import decode
from mcsam_jax.errors import UserError
from mcsam_jax.inference import feature_cache
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.registry import make_encoder

SIZE, VIEWS = 32, 2


def jpeg(rng):
  encoded = io.BytesIO()
  PIL.Image.fromarray(rng.integers(0, 255, (40, 36), np.uint8)).save(encoded, "JPEG")
  return encoded.getvalue()


class Studies:
  """A split of 23 studies with none to three images each."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.records = [{"images": [jpeg(rng) for _ in range((1, 2, 3, 0)[i % 4])]} for i in range(23)]

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


@pytest.fixture(scope="module")
def encoder():
  module = make_encoder("resnet_tiny")
  init = jax.jit(module.init, compiler_options={"xla_backend_optimization_level": 0})   # compiles 7 x faster
  return module, init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setattr(feature_cache, "BATCH", 8)        # so that batches and studies don't line up
  config = phantom.get_config()
  config.encoder.name = "resnet_tiny"
  config.data.data_dir, config.data.image_size, config.data.num_views = str(tmp_path), SIZE, VIEWS
  return config


@pytest.fixture(scope="module")
def expected(encoder):
  module, variables = encoder
  features = np.zeros((23, VIEWS, 4, 128), np.float32)
  apply = jax.jit(lambda image: module.apply(variables, normalize_images(image[None, None], "resnet_tiny")[0]))
  for study, record in enumerate(Studies()):
    for view, image in enumerate(record["images"][:VIEWS]):
      features[study, view] = np.asarray(apply(decode(image, SIZE))).reshape(4, 128)
  return features


def cached(config, split, encoder, log=lambda line: None):
  return feature_cache.cached_features(config, "val", split, *encoder, log=log)


def cache_files(config):
  return sorted(feature_cache.pathlib.Path(config.data.data_dir).glob("features/*/*"))


def test_equals_the_encoder_and_is_computed_once(config, encoder, expected):
  split, lines = Studies(), []
  features = cached(config, split, encoder, lines.append)
  assert features.dtype == np.float16
  np.testing.assert_allclose(features, expected, atol=2e-3, rtol=2e-3)
  assert not features[3].any() and not features[0, 1].any() and features[0, 0].any()
  assert "23/23 studies" in lines[-1] and "images/s" in lines[-1]
  assert [path.name for path in cache_files(config)] == ["val.npy"]
  lines.clear()
  np.testing.assert_array_equal(cached(config, split, encoder, lines.append), features)
  assert not lines


@pytest.mark.parametrize("damage", [
    lambda data: data[:-1], lambda data: b"\0" * 10 + data[10:], lambda data: b""])
def test_a_damaged_file_is_computed_anew(config, encoder, expected, damage):
  cached(config, Studies(), encoder)
  path, = cache_files(config)
  path.write_bytes(damage(path.read_bytes()))
  np.testing.assert_allclose(cached(config, Studies(), encoder), expected, atol=2e-3, rtol=2e-3)


def test_goes_on_where_it_was_interrupted(config, encoder, expected, monkeypatch):
  write, written = feature_cache._write_all, []

  def interrupted(file, data):
    if len(written) == 18:
      write(file, data[:100])                 # in the midst of a slot
      raise KeyboardInterrupt
    written.append(write(file, data))

  monkeypatch.setattr(feature_cache, "_write_all", interrupted)
  with pytest.raises(KeyboardInterrupt):
    cached(config, Studies(), encoder)
  assert [path.name for path in cache_files(config)] == ["val.npy.unfinished"]
  monkeypatch.setattr(feature_cache, "_write_all", lambda file, data: written.append(write(file, data)))
  np.testing.assert_allclose(cached(config, Studies(), encoder), expected, atol=2e-3, rtol=2e-3)
  assert len(written) == sum(min(VIEWS, len(record["images"])) for record in Studies().records)


def test_a_disk_without_locks_is_used_with_a_line(config, encoder, expected, monkeypatch):
  def flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  replace = feature_cache.os.replace

  def late(source, target):
    replace(source, target)                   # another run has been faster
    replace(source, target)
  monkeypatch.setattr(feature_cache.fcntl, "flock", flock)
  monkeypatch.setattr(feature_cache.os, "replace", late)
  lines = []
  np.testing.assert_allclose(cached(config, Studies(), encoder, lines.append), expected, atol=2e-3, rtol=2e-3)
  assert "can't be locked (No locks available)" in lines[0] and [path.name for path in cache_files(config)] == ["val.npy"]


def test_no_space_is_said_and_leaves_nothing(config, encoder, monkeypatch):
  def full(file, data):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(feature_cache, "_write_all", full)
  with pytest.raises(UserError, match="no space for the features of val"):
    cached(config, Studies(), encoder)
  assert not cache_files(config)


def test_other_weights_images_or_sizes_are_other_files(config, encoder):
  module, variables = encoder
  cached(config, Studies(), encoder)
  cached(config, Studies(), (module, jax.tree.map(lambda leaf: leaf + 0.01, variables)))
  other = Studies()
  other.records[0]["images"][0] = jpeg(np.random.default_rng(1))
  cached(config, other, encoder)
  config.data.image_size = 48
  cached(config, Studies(), encoder)
  assert len(cache_files(config)) == 4


def test_pooled_is_the_mean_of_the_first_view(config, encoder, expected):
  reference = expected[:, 0].mean(1)
  from_cache = feature_cache.pooled(cached(config, Studies(), encoder))
  np.testing.assert_allclose(from_cache, reference, atol=2e-3)
  direct = feature_cache.pooled_features(config, Studies(), *encoder, log=[].append)
  assert from_cache.dtype == direct.dtype == np.float32
  np.testing.assert_allclose(direct, reference, atol=1e-5)
