"""The frozen stages of an encoder and its trained ones together are the whole encoder; only the latter are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.batch import empty_batch
from mcsam_jax.checkpoints.encoder_weights import check_encoder, select_frozen_variables
from mcsam_jax.errors import UserError
from mcsam_jax.inference.image_encoder import encode_images, make_pool_fn
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.inputs import visual_inputs
from mcsam_jax.models.visual_encoders import registry
from mcsam_jax.models.visual_encoders.densenet import DenseNet
from mcsam_jax.training.flops import forward_flops, IMAGE_ENCODER
from tests.testing.tiny import make_config, NETWORK, PHANTOMS

FAST_COMPILATION = {"xla_backend_optimization_level": 0}


def make_frozen(name, trained_stages, image_size=64):
  return make_config(NETWORK, PHANTOMS, encoder__name=name, encoder__frozen=True, encoder__weights="w.npz",
                     encoder__trained_stages=trained_stages, data__image_size=image_size)


def draw_variables(module, image_size, channels):
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, image_size, image_size, channels), np.float32))
  rng = np.random.default_rng(0)
  draw = lambda path, leaf: rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype) if (
      path[-1].key == "kernel") else rng.uniform(0.5, 1, leaf.shape).astype(leaf.dtype)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def draw_images(image_size, count=3):
  return np.random.default_rng(1).integers(0, 256, (count, image_size, image_size, 1), np.uint8)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0", "densenet121", "resnet_tiny"])
def test_each_stage_has_the_output_of_its_spec_and_parameters_of_its_own(name):
  spec, encoder = registry.ENCODERS[name], registry.make_encoder(name)
  x = image = jax.ShapeDtypeStruct((1, 64, 64, spec.input_channels), np.float32)
  names = []
  for stage, (stride, channels) in enumerate(spec.stages):
    module = encoder.clone(first_stage=stage, end_stage=stage + 1)
    x, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert x.shape == (1, 64 // stride, 64 // stride, channels)
    names += variables["params"]
  assert sorted(names) == sorted(jax.eval_shape(encoder.init, jax.random.key(0), image)["params"])


@pytest.mark.parametrize("name, numbers", [("resnet_tiny", (1, 3)), ("efficientnet_lite0", (2,)), ("densenet", (1,))])
def test_frozen_and_trained_stages_together_are_the_encoder(name, numbers, monkeypatch):
  if name == "densenet":             # one with two small blocks
    make = lambda dtype, remat: DenseNet((1, 2), end_stage=2)
    spec = dataclasses.replace(registry.ENCODERS["densenet121"], make=make, channels=112, stride=8,
                               stages=((8, 48), (8, 112)))
    monkeypatch.setitem(registry.ENCODERS, name, spec)
  config, spec = make_frozen("resnet_tiny", 0), registry.ENCODERS[name]
  with config.unlocked():
    config.encoder.name = name
  encoder = registry.make_encoder(name)
  variables, images = draw_variables(encoder, 64, spec.input_channels), draw_images(64)
  run = lambda module, variables: jax.jit(lambda variables, images: encode_images(module, config, variables, images),
                                          compiler_options=FAST_COMPILATION)(variables, images)
  expected = np.asarray(run(encoder, variables))
  for number in numbers:
    with config.unlocked():
      config.encoder.trained_stages = number
    frozen = select_frozen_variables(config, variables)
    assert 0 < len(jax.tree.leaves(frozen)) < len(jax.tree.leaves(variables))
    output = run(registry.make_frozen_stages(config), frozen)
    grid = int(output.shape[1] ** 0.5)
    features = jax.jit(registry.make_trained_stages(config).apply, compiler_options=FAST_COMPILATION)(
        variables, output.reshape(3, grid, grid, -1))
    np.testing.assert_allclose(features.reshape(expected.shape), expected, atol=1e-4 * np.abs(expected).max())
    # Pooled features are those of the whole encoder, up to the float16 of the cache.
    pooled = make_pool_fn(config, variables)(np.asarray(output, np.float16))
    np.testing.assert_allclose(pooled, expected.mean(1), atol=5e-3 * np.abs(expected).max())


def test_the_network_has_and_differentiates_the_trained_stages_alone():
  config = make_frozen("resnet_tiny", 1, image_size=32)
  shape = registry.frozen_feature_shape(config)
  assert shape == (4, 64)
  model, batch = make_model(config, 20, 2), empty_batch(config, 2, shape)
  batch["features"] = np.random.default_rng(0).random(batch["features"].shape, np.float32).astype(np.float16)
  images, *_ = visual_inputs(config, batch)
  assert images.shape == (2, 2, 2, 2, 64)
  extract = jax.jit(lambda variables: model.apply(variables, images, True, method="extract_features"))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, True, method="extract_features"))
  assert set(shapes["params"]["visual_encoder"]) == set(shapes["batch_stats"]["visual_encoder"]) == {"layer4_0"}
  variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
  expected = jax.jit(registry.make_trained_stages(config).apply)(
      {name: tree["visual_encoder"] for name, tree in variables.items()}, images.reshape(4, 2, 2, 64))
  np.testing.assert_allclose(extract(variables).reshape(expected.shape), expected, rtol=1e-5)
  gradient = jax.grad(lambda variables: extract(variables).sum())(variables)["params"]["visual_encoder"]
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["layer4_0"]))


def test_operations_of_the_trained_stages_by_hand():
  config = make_frozen("resnet_tiny", 1, image_size=32)
  # Two 3x3 convolutions and a projection of the shortcut, of 2 views with 2 x 2 positions.
  last_stage = 2 * 4 * 2 * (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128)
  parts = forward_flops(config, 20, 1)
  assert sum(flops for name, flops in parts.items() if name in (IMAGE_ENCODER, "first convolution")) == last_stage


@pytest.mark.parametrize("changes, named", [
    ({"encoder__frozen": False}, ["encoder.trained_stages=1", "encoder.frozen=true"]),
    ({"encoder__trained_stages": 4}, ["encoder.trained_stages=4", "resnet_tiny", "encoder.frozen=false"]),
    ({"encoder__trained_stages": -1}, ["encoder.trained_stages=-1"]),
    ({"encoder__name": "dinov2_small", "data__image_size": 28}, ["encoder.trained_stages=1", "dinov2_small"]),
    ({"encoder__trained_stages": 0, "encoder__cached_augmentations": 2, "encoder__frozen": False},
     ["encoder.cached_augmentations=2", "encoder.frozen=true", "data.augment"])])
def test_impossible_combinations_are_named(changes, named):
  fields = {"encoder__frozen": True, "encoder__weights": "w.npz", "encoder__trained_stages": 1} | changes
  with pytest.raises(UserError) as error:
    make_config(NETWORK, PHANTOMS, **fields)
  assert all(part in str(error.value) for part in named)


def test_a_spec_whose_last_stage_is_not_its_output_is_refused():
  with pytest.raises(ValueError, match="stages"):
    dataclasses.replace(registry.ENCODERS["resnet50"], stages=((4, 256), (16, 1024)))


def test_stages_of_a_users_own_encoder_are_checked():
  fields = {"encoder__frozen": True, "encoder__weights": "w.npz", "encoder__trained_stages": 1}
  make = lambda function: make_config(NETWORK, PHANTOMS, encoder__name=f"tests.testing.tiny_vit:{function}", **fields)
  check_encoder(make("make_stages"))
  with pytest.raises(UserError, match="make_unnamed_stages.*names"):     # its Conv_0 is another one without stage 0
    check_encoder(make("make_unnamed_stages"))
  with pytest.raises(UserError, match=r"make_wrong_stages.*\[1, 8, 8, 16\].*\[1, 8, 8, 32\]"):
    check_encoder(make("make_wrong_stages"))
  with pytest.raises(UserError, match="make_spec.*no stages"):
    make("make_spec")
