"""The memory bank against a slot-by-slot computation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.memory_bank import MemoryBank, weigh_values
from tests.testing.random_variables import draw_variables


def query_bank(bank, features):
  return bank(features, bank.project_slots(), train=False)


def make_variables(bank, features):
  """Returns random variables of a memory bank."""
  return draw_variables(lambda: bank.init(jax.random.key(0), features, method=query_bank))


def run_bank(bank, variables, features, **arguments):
  """Returns the responses, computed by one compiled program."""
  return jax.jit(lambda variables: bank.apply(variables, features, method=query_bank, **arguments))(variables)


def test_responses_equal_a_plain_computation():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, 5, 8)).astype(np.float32)
  bank = MemoryBank(num_slots=12, slot_width=6, width=8, num_heads=2, top_k=3)
  variables = make_variables(bank, features)
  params = jax.tree.map(np.asarray, variables["params"])

  def linear(name, x):
    return x @ params[name]["kernel"] + params[name]["bias"]

  query, key, value = linear("query", features), linear("key", params["slots"]), linear("value", params["slots"])
  attended = np.zeros_like(query)
  for head in (slice(0, 4), slice(4, 8)):
    scores = query[..., head] @ key[:, head].T / 2                        # the square root of D/H = 4
    for row in np.ndindex(2, 5):
      best = np.argsort(-scores[row])[:3]
      weights = np.exp(scores[row][best] - scores[row][best].max())
      attended[row][head] = weights / weights.sum() @ value[best, head]
  np.testing.assert_allclose(run_bank(bank, variables, features), linear("output", attended), atol=1e-5)


def test_unselected_slots_get_no_gradient():
  features = jax.random.normal(jax.random.key(1), (1, 1, 8))
  bank = MemoryBank(num_slots=20, slot_width=8, width=8, num_heads=2, top_k=3)
  variables = make_variables(bank, features)
  gradient = jax.grad(lambda variables: run_bank(bank, variables, features).sum())(variables)["params"]["slots"]
  num_touched = int((np.abs(gradient).max(-1) > 0).sum())
  assert 3 <= num_touched <= 6            # three per head


def test_slot_weights_are_sown_on_request():
  features = jax.random.normal(jax.random.key(1), (2, 3, 8))
  bank = MemoryBank(num_slots=20, slot_width=8, width=8, num_heads=2, top_k=4)
  variables = make_variables(bank, features)
  _, state = run_bank(bank, variables, features, mutable=["intermediates"])
  weights = state["intermediates"]["slot_weights"][0]
  assert weights.shape == (2, 2, 3, 20)
  np.testing.assert_array_equal((np.asarray(weights) > 0).sum(-1), 4)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_values_weighed_in_chunks_equal_one_product():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(2, 512, 4)).astype(np.float32)
  for num_queries in (3, 200):                             # few queries: chunks of slots
    weights = rng.random((2, num_queries, 512)).astype(np.float32)
    expected = np.einsum("hrs,hsd->hrd", weights.astype(float), values.astype(float))
    np.testing.assert_allclose(weigh_values(jnp.asarray(weights), jnp.asarray(values)), expected, atol=1e-4)
