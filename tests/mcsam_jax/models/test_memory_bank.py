"""The memory bank against a slot-by-slot computation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.memory_bank import by_bits, by_narrowing, MemoryBank, top_k_mask


def respond(bank, features):
  return bank(features, bank.project(), train=False)


def test_responses_equal_a_plain_computation():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, 5, 8)).astype(np.float32)
  bank = MemoryBank(num_slots=12, slot_width=6, width=8, num_heads=2, top_k=3)
  variables = bank.init(jax.random.key(0), features, method=respond)
  weights = jax.tree.map(np.asarray, variables["params"])

  def linear(name, x):
    return x @ weights[name]["kernel"] + weights[name]["bias"]

  query, key, value = linear("query", features), linear("key", weights["slots"]), linear("value", weights["slots"])
  mixed = np.zeros_like(query)
  for head in (slice(0, 4), slice(4, 8)):
    scores = query[..., head] @ key[:, head].T / 2                        # the root of D/H = 4
    for row in np.ndindex(2, 5):
      best = np.argsort(-scores[row])[:3]
      share = np.exp(scores[row][best] - scores[row][best].max())
      mixed[row][head] = share / share.sum() @ value[best, head]
  np.testing.assert_allclose(bank.apply(variables, features, method=respond), linear("output", mixed), atol=1e-5)


def test_keep_top_k_keeps_exactly_k_and_prefers_lower_indices_among_ties():
  scores = jnp.array([[1., 3., 3., 3., 0.], [2., 2., 2., 2., 2.], [5., 1., 4., 2., 3.]])
  kept = np.isfinite(top_k_mask(scores, 2))
  np.testing.assert_array_equal(kept, [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]])


@pytest.mark.parametrize("choose", [by_bits, by_narrowing])
@pytest.mark.parametrize("size, k, decimals", [(2048, 32, 7), (512, 5, 7), (1000, 32, 7), (2048, 32, 1), (300, 300, 7)])
def test_the_k_largest_are_those_of_a_stable_sort(choose, size, k, decimals):
  """Rounded to one decimal most scores have a twin: the lower index goes first."""
  scores = np.random.default_rng(size + k).normal(size=(3, 7, size)).astype(np.float32).round(decimals)
  expected = np.zeros(scores.shape, bool)
  np.put_along_axis(expected, np.argsort(-scores, axis=-1, kind="stable")[..., :k], True, axis=-1)
  np.testing.assert_array_equal(jax.jit(choose, static_argnums=1)(jnp.asarray(scores), k), expected)


def test_top_k_of_all_slots_changes_nothing():
  scores = jnp.arange(4.0)
  np.testing.assert_array_equal(top_k_mask(scores, 4), scores)


def test_slots_that_do_not_answer_get_no_gradient():
  features = jax.random.normal(jax.random.key(1), (1, 1, 8))
  bank = MemoryBank(num_slots=20, slot_width=8, width=8, num_heads=2, top_k=3)
  variables = bank.init(jax.random.key(0), features, method=respond)
  gradient = jax.grad(lambda v: bank.apply(v, features, method=respond).sum())(variables)["params"]["slots"]
  touched = int((np.abs(gradient).max(-1) > 0).sum())
  assert 3 <= touched <= 6            # three a head


def test_slot_weights_can_be_had_on_request():
  features = jax.random.normal(jax.random.key(1), (2, 3, 8))
  bank = MemoryBank(num_slots=20, slot_width=8, width=8, num_heads=2, top_k=4)
  variables = {"params": bank.init(jax.random.key(0), features, method=respond)["params"]}
  _, state = bank.apply(variables, features, method=respond, mutable=["intermediates"])
  weights = state["intermediates"]["slot_weights"][0]
  assert weights.shape == (2, 2, 3, 20)
  np.testing.assert_array_equal((np.asarray(weights) > 0).sum(-1), 4)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
