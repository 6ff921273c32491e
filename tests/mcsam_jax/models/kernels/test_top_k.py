"""Selection of the k largest scores against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.kernels.top_k import _pruned_select, _radix_select, top_k_mask


def test_exactly_k_scores_remain_and_ties_go_to_lower_indices():
  scores = jnp.array([[1., 3., 3., 3., 0.], [2., 2., 2., 2., 2.], [5., 1., 4., 2., 3.]])
  selected = np.isfinite(top_k_mask(scores, 2))
  np.testing.assert_array_equal(selected, [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]])


@pytest.mark.parametrize("select", [_radix_select, _pruned_select])
@pytest.mark.parametrize("size, k, decimals", [(2048, 32, 7), (512, 5, 7), (1000, 32, 7), (2048, 32, 1), (300, 300, 7)])
def test_selects_the_same_scores_as_a_stable_sort(select, size, k, decimals):
  """Rounded to one decimal, most scores are tied: the lower index wins."""
  scores = np.random.default_rng(size + k).normal(size=(3, 7, size)).astype(np.float32).round(decimals)
  expected = np.zeros(scores.shape, bool)
  np.put_along_axis(expected, np.argsort(-scores, axis=-1, kind="stable")[..., :k], True, axis=-1)
  np.testing.assert_array_equal(jax.jit(select, static_argnums=1)(jnp.asarray(scores), k), expected)


def test_k_equal_to_the_number_of_scores_changes_nothing():
  scores = jnp.arange(4.0)
  np.testing.assert_array_equal(top_k_mask(scores, 4), scores)
