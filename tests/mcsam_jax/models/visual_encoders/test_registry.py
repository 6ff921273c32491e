"""Encoders against their PyTorch originals, with weights converted by the same name maps as users' weights."""

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder
from mcsam_jax.models.visual_encoders.resnet import Bottleneck, ResNet
from mcsam_jax.pretrained.conversion import convert
from mcsam_jax.pretrained.image_encoder import find_packaged_checkpoint
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.torch_names import get_encoder_shapes, MAPPING
from tests.testing.parity import draw_state_dict, PARITY, read_json, relative_error


def extract_features(name, tensors, seed):
  variables, report = convert(tensors, name, get_encoder_shapes(name), MAPPING)
  assert report.is_complete
  images = (np.random.RandomState(seed).random_sample((2, 3, 224, 224)) * 2 - 1).astype(np.float32)
  return np.asarray(jax.jit(make_encoder(name).apply)(variables, images.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_resnet_agrees_with_torchvision(name):
  features = extract_features(name, draw_state_dict(read_json(f"{name}_keys.json")), seed=3)
  reference = np.load(PARITY / f"{name}.npz")
  assert features.shape == (2, 7, 7, ENCODERS[name].channels)
  assert relative_error(features[..., ::16], reference["features"].transpose(0, 2, 3, 1)) < 1e-4
  assert relative_error(features.mean((1, 2)), reference["features_mean"]) < 1e-4


def test_efficientnet_agrees_with_its_imagenet_weights():
  try:
    path = find_packaged_checkpoint("efficientnet-lite0")
  except UserError as error:
    pytest.skip(str(error))
  features = extract_features("efficientnet_lite0", read_state_dict(path), seed=5)
  reference = np.load(PARITY / "efficientnet_lite0.npz")
  assert features.shape == (2, 7, 7, ENCODERS["efficientnet_lite0"].channels)
  assert relative_error(features[..., ::8], reference["features"].transpose(0, 2, 3, 1)) < 1e-3
  assert relative_error(features.mean((1, 2)), reference["features_mean"]) < 1e-3


def test_tiny_updates_batch_statistics_only_in_training():
  encoder = make_encoder("resnet_tiny")
  images = jax.random.normal(jax.random.key(0), (4, 128, 128, 3)) + 2
  init = jax.jit(encoder.init, compiler_options={"xla_backend_optimization_level": 0})   # compiles 7 x faster
  variables = init(jax.random.key(1), images)
  features, updated = jax.jit(lambda v, x: encoder.apply(v, x, train=True, mutable=["batch_stats"]))(
      variables, images)
  assert features.shape == (4, 8, 8, ENCODERS["resnet_tiny"].channels)
  before, after = variables["batch_stats"]["bn1"]["mean"], updated["batch_stats"]["bn1"]["mean"]
  stem = jax.lax.conv_general_dilated(images, variables["params"]["conv1"]["kernel"], (4, 4), [(3, 3)] * 2,
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  np.testing.assert_allclose(after, 0.9 * before + 0.1 * stem.mean((0, 1, 2)), atol=1e-4)
  # With running statistics, an image's features don't depend on the other images of the batch.
  apply = jax.jit(encoder.apply)
  np.testing.assert_allclose(apply(variables, images)[:1], apply(variables, images[:1]), atol=1e-4)


class PlainResNet(nn.Module):
  """The network of `ResNet` written plainly: batch norm after each convolution, ReLU before the pool."""
  depths: tuple[int, ...]
  widths: tuple[int, ...]
  strides: tuple[int, ...]
  stem_width: int

  @nn.compact
  def __call__(self, images):
    x = nn.relu(self.conv_norm(images, self.stem_width, 7, 2, "conv1", "bn1"))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, (depth, width, first) in enumerate(zip(self.depths, self.widths, self.strides), 1):
      for i in range(depth):
        x = self.bottleneck(x, width, first if i == 0 else 1, f"layer{stage}_{i}/")
    return x

  def bottleneck(self, x, width, stride, prefix):
    y = nn.relu(self.conv_norm(x, width, 1, 1, prefix + "conv1", prefix + "bn1"))
    y = nn.relu(self.conv_norm(y, width, 3, stride, prefix + "conv2", prefix + "bn2"))
    y = self.conv_norm(y, 4 * width, 1, 1, prefix + "conv3", prefix + "bn3")
    if y.shape != x.shape:
      x = self.conv_norm(x, 4 * width, 1, stride, prefix + "downsample_0", prefix + "downsample_1")
    return nn.relu(y + x)

  def conv_norm(self, x, features, kernel, stride, conv, norm):
    y = nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False,
                param_dtype=x.dtype, name=conv)(x)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, param_dtype=x.dtype, name=norm)(y)


def nest(variables):
  return traverse_util.unflatten_dict({tuple("/".join(path).split("/")): leaf
                                       for path, leaf in traverse_util.flatten_dict(variables).items()})


def test_folding_frozen_batch_norm_into_the_kernels_keeps_outputs_and_gradients():
  sizes = {"depths": (2, 1), "widths": (4, 6), "strides": (1, 2), "stem_width": 4}   # with every kind of shortcut
  fast_compilation = {"xla_backend_optimization_level": 0}
  with jax.enable_x64():
    rng = np.random.default_rng(0)
    images, target = rng.standard_normal((2, 36, 36, 3)), rng.standard_normal((2, 5, 5, 24))
    plain, resnet = PlainResNet(**sizes), ResNet(Bottleneck, **sizes, dtype=jnp.float64)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])       # variances are positive

    def value_and_gradients(apply, variables):
      loss = lambda params, images: (apply({**variables, "params": params}, images) * target).sum()
      return jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=fast_compilation)(variables["params"], images)

    expected, (expected_params, expected_images) = value_and_gradients(plain.apply, variables)
    loss, (params_grad, images_grad) = value_and_gradients(resnet.apply, nest(variables))
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_allclose(images_grad, expected_images, atol=1e-12 * np.abs(expected_images).max())
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-12 * np.abs(other).max()),
               params_grad, nest(expected_params))


def test_bfloat16_features_keep_float32_parameters():
  encoder = make_encoder("resnet_tiny", jnp.bfloat16)
  features, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 64, 64, 3)))
  assert features.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
