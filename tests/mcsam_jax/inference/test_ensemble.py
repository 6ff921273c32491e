"""What an ensemble says is the mean of what its models say."""

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.inference.ensemble import mean_probability, stack_caches, unstack_caches


def test_caches_come_apart_as_they_went_together():
  caches = [{"beams": number, "position": 2 * number} for number in (1, 2)]
  assert stack_caches(caches)["beams"] == [1, 2] and unstack_caches(stack_caches(caches)) == caches


def test_the_mean_of_probabilities_by_hand():
  first, second = jnp.log(jnp.array([[0.5, 0.5, 0.0]])), jnp.log(jnp.array([[0.1, 0.3, 0.6]])) + 7.0   # any shift
  probabilities = jax.nn.softmax(mean_probability([first, second]))
  np.testing.assert_allclose(probabilities, [[0.3, 0.4, 0.3]], rtol=1e-6)


def test_a_model_alone_keeps_its_logits():
  logits = jnp.array([[3.0, -2.0, 40.0]], jnp.bfloat16)
  assert mean_probability([logits]) is logits
