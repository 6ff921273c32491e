"""DenseNet-121 and DINOv2 against torchvision and `transformers`, with weights named and converted as users' are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.dinov2 import DinoV2
from mcsam_jax.models.visual_encoders.position_grid import fit_position_embeddings, make_resize_matrix, POSITIONS
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_encoder
from mcsam_jax.pretrained import densenet, dinov2
from mcsam_jax.pretrained.conversion import convert
from mcsam_jax.pretrained.torch_names import get_encoder_shapes
from tests.testing.parity import draw_state_dict, PARITY, read_json, relative_error


def flat_shapes(tree):
  return {"/".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_densenet_agrees_with_torchxrayvision():
  tensors, reference = draw_state_dict(read_json("densenet121_keys.json")), np.load(PARITY / "densenet121.npz")
  variables, report = convert(tensors, "densenet121", get_encoder_shapes("densenet121"), densenet.MAPPING)
  assert report.is_complete and len(report.converted) == 120 + 4 * 121              # convolutions and norms
  images = (np.random.RandomState(3).random_sample((2, 1, 224, 224)) * 2 - 1).astype(np.float32) * 1024
  features = np.asarray(jax.jit(make_encoder("densenet121").apply)(variables, images.transpose(0, 2, 3, 1)))
  assert features.shape == (2, 7, 7, find_encoder("densenet121").channels)
  assert relative_error(features[..., ::8], reference["features"].transpose(0, 2, 3, 1)) < 1e-4
  assert relative_error(features.mean((1, 2)), reference["features_mean"]) < 1e-4


def draw_small_dinov2(image_size):
  """Returns the parity file's small network and its variables for an image size."""
  sizes = read_json("dinov2.json")["config"]
  module = DinoV2(sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"])
  shapes_at = lambda size: flat_shapes(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3))))
  tensors = draw_state_dict(read_json("dinov2.json")["keys"])
  assert dinov2.find_image_size(tensors, "file") == sizes["image_size"]
  variables, report = convert(tensors, "dinov2", shapes_at(sizes["image_size"]), dinov2.MAPPING)
  assert report.is_complete and report.ignored == ["embeddings.mask_token"]
  flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
  variables["params"]["position_embeddings"] = fit_position_embeddings(flat, shapes_at(image_size))[POSITIONS]
  return module, variables


@pytest.mark.parametrize("image_size", [70, 112])
def test_dinov2_agrees_with_transformers(image_size):
  module, variables = draw_small_dinov2(image_size)
  images = np.random.RandomState(image_size).random_sample((2, 3, image_size, image_size)) * 2 - 1
  features = np.asarray(jax.jit(module.apply)(variables, images.astype(np.float32).transpose(0, 2, 3, 1)))
  reference = np.load(PARITY / "dinov2_small.npz")[f"tokens_{image_size}"][:, 1:]      # without the class token
  assert features.shape == (2, image_size // 14, image_size // 14, 48)
  assert relative_error(features.reshape(reference.shape), reference) < 1e-5


def test_rematerialized_encoders_have_the_same_variables():
  for name in ("densenet121", "dinov2_small"):
    image = jnp.zeros((1, 224, 224, find_encoder(name).input_channels))
    plain, recomputed = (jax.eval_shape(make_encoder(name, remat=remat).init, jax.random.key(0), image)
                         for remat in (False, True))
    assert plain == recomputed


def test_other_image_sizes_are_refused_by_name():
  with pytest.raises(UserError, match="100 x 112.*14"):
    jax.eval_shape(DinoV2(48, 1, 4).init, jax.random.key(0), jnp.zeros((1, 100, 112, 3)))


@pytest.mark.parametrize("size, resized", [
    (5, [-0.092834, 0.187561, 1.176514, 2.619385, 5.44165, 8.471436, 13.395081, 16.649841]),
    (7, [0.351852, 9.0, 29.462963]), (4, [0, 1, 4, 9])])
def test_squares_are_resized_as_by_pytorch(size, resized):
  """The values are torch.nn.functional.interpolate(..., mode="bicubic") of 0, 1, 4, 9, ..."""
  matrix = make_resize_matrix(size, len(resized))
  np.testing.assert_allclose(matrix @ np.arange(size) ** 2, resized, atol=1e-6)
  np.testing.assert_allclose(matrix.sum(1), 1)


@pytest.mark.parametrize("shape", [(1, 25, 48), (1, 26, 32), (26, 48), (1, 0, 48)])
def test_position_embeddings_of_another_kind_stay_as_they_are(shape):
  weights = {POSITIONS: np.ones(shape, np.float32)}
  assert fit_position_embeddings(weights, {POSITIONS: (1, 65, 48)}) is weights


def test_encoders_see_the_pixel_range_that_they_were_trained_with():
  images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1, 1)
  xray_vision = normalize_images(images, "densenet121")                # (2 * pixel / 255 - 1) * 1024
  np.testing.assert_allclose(xray_vision[0, 0, :, 0], [[-1024], [(2 * 51 / 255 - 1) * 1024], [1024]], rtol=1e-6)
  rad_dino = normalize_images(images, "rad_dino")
  assert rad_dino.shape == (1, 1, 3, 1, 3)
  np.testing.assert_allclose(rad_dino[0, 0, :, 0, 2], (np.array([0, 0.2, 1]) - 0.5307) / 0.2583, rtol=1e-5)
