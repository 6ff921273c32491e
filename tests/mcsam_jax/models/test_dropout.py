"""Dropout has the requested rate, and its bits are independent and a function of key and position alone."""

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.dropout import Dropout, random_bits


def test_dropped_fraction_and_scale_of_the_rest():
  x = jnp.ones((40, 50, 60))
  for rate in (0.1, 0.5):
    y = np.asarray(Dropout(rate).apply({}, x, False, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0, np.float32(1 / (1 - rate))}
    assert abs((y == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / x.size)
    for axis in range(3):                                       # evenly over rows, columns and layers
      shares = (y == 0).mean(tuple(other for other in range(3) if other != axis))
      assert np.abs(shares - rate).max() < 5 * np.sqrt(rate * (1 - rate) / (x.size / x.shape[axis]))
  assert Dropout(0.5).apply({}, x, True) is x and Dropout(0.0).apply({}, x, False) is x


def test_broadcast_dims_share_their_draws():
  y = Dropout(0.5, (-3,)).apply({}, jnp.ones((2, 4, 8, 8)), False, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert not np.array_equal(y[0], y[1])


def test_bits_of_adjacent_elements_and_of_adjacent_keys_are_uncorrelated():
  """The correlation of n pairs of independent bits has a standard deviation of n^-1/2."""
  draws = [np.asarray(random_bits(jax.random.fold_in(jax.random.key(0), number), (256, 512))) for number in range(3)]
  bits = [(np.unpackbits(draw.view(np.uint8)).reshape(*draw.shape, 32) * 2.0 - 1) for draw in draws]
  limit = 5 / np.sqrt(draws[0].size)
  for one in bits:
    assert np.abs(one.mean((0, 1))).max() < limit
    for product in (one[1:] * one[:-1], one[:, 1:] * one[:, :-1], one[:, 8:] * one[:, :-8],
                    one[1:, 1:] * one[:-1, :-1]):
      assert np.abs(product.mean((0, 1))).max() < limit
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert np.abs((bits[one] * bits[other]).mean((0, 1))).max() < limit
  assert len(np.unique(draws[0])) > draws[0].size - 10          # 2^17 of 2^32 numbers have two collisions on average


def test_bits_depend_on_the_row_number_but_not_on_the_shape():
  key = jax.random.key(3)
  np.testing.assert_array_equal(random_bits(key, (6, 7, 8)).reshape(42, 8), random_bits(key, (42, 8)))
