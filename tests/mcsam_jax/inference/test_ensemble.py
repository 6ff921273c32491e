"""An ensemble averages the probabilities of its models and reorders all their caches."""

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.inference.ensemble import average_probabilities, stack_caches, unstack_caches


def test_unstack_caches_inverts_stack_caches():
  caches = [{"beams": number, "position": 2 * number} for number in (1, 2)]
  assert stack_caches(caches)["beams"] == [1, 2] and unstack_caches(stack_caches(caches)) == caches


def test_average_of_known_probabilities():
  first, second = jnp.log(jnp.array([[0.5, 0.5, 0.0]])), jnp.log(jnp.array([[0.1, 0.3, 0.6]])) + 7.0   # any offset
  probabilities = jax.nn.softmax(average_probabilities([first, second]))
  np.testing.assert_allclose(probabilities, [[0.3, 0.4, 0.3]], rtol=1e-6)


def test_single_model_keeps_its_logits():
  logits = jnp.array([[3.0, -2.0, 40.0]], jnp.bfloat16)
  assert average_probabilities([logits]) is logits
