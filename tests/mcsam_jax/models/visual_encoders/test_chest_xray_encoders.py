"""DenseNet-121 and DINOv2: input ranges, image sizes, position embeddings; parity is in tests/mcsam_jax/pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import normalize_images
from mcsam_jax.models.visual_encoders.densenet import DenseNet
from mcsam_jax.models.visual_encoders.dinov2 import DinoV2
from mcsam_jax.models.visual_encoders.position_grid import fit_position_embeddings, make_resize_matrix, POSITIONS


@pytest.mark.parametrize("module, channels", [(lambda remat: DenseNet((1, 1), remat=remat), 1),
                                              (lambda remat: DinoV2(16, 1, 2, remat=remat), 3)], ids=["dense", "dino"])
def test_rematerialized_encoders_have_the_same_variables(module, channels):
  image = jnp.zeros((1, 224, 224, channels))
  plain, recomputed = (jax.eval_shape(module(remat).init, jax.random.key(0), image) for remat in (False, True))
  assert plain == recomputed


def test_densenet_normalizes_by_the_batch_only_in_training():
  encoder = DenseNet((1, 1), dtype=jnp.bfloat16)
  image = jnp.zeros((2, 64, 64, 1))
  variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
  apply = lambda train: jax.eval_shape(
      lambda variables: encoder.apply(variables, image, train, mutable=["batch_stats"]), variables)
  features, updated = apply(True)
  assert features.dtype == jnp.bfloat16 and updated["batch_stats"] == variables["batch_stats"]
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  with pytest.raises(Exception, match="batch_stats"):
    jax.eval_shape(lambda variables: encoder.apply(variables, image, True), variables)


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
