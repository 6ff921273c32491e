"""Draws that are as many as asked for, independent of each other, and a function of key and place alone."""

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.dropout import Dropout, random_words


def test_the_share_that_is_dropped_and_what_is_left():
  x = jnp.ones((40, 50, 60))
  for rate in (0.1, 0.5):
    y = np.asarray(Dropout(rate).apply({}, x, False, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0, np.float32(1 / (1 - rate))}
    assert abs((y == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / x.size)
    for axis in range(3):                                       # no row, column or layer is favoured
      shares = (y == 0).mean(tuple(other for other in range(3) if other != axis))
      assert np.abs(shares - rate).max() < 5 * np.sqrt(rate * (1 - rate) / (x.size / x.shape[axis]))
  assert Dropout(0.5).apply({}, x, True) is x and Dropout(0.0).apply({}, x, False) is x


def test_axes_may_share_their_draws():
  y = Dropout(0.5, (-3,)).apply({}, jnp.ones((2, 4, 8, 8)), False, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert not np.array_equal(y[0], y[1])


def test_numbers_of_neighbours_and_of_neighbouring_keys_have_nothing_in_common():
  """Of independent bits, a correlation over n pairs has a standard deviation of n^-1/2."""
  draws = [np.asarray(random_words(jax.random.fold_in(jax.random.key(0), number), (256, 512))) for number in range(3)]
  bits = [(np.unpackbits(draw.view(np.uint8)).reshape(*draw.shape, 32) * 2.0 - 1) for draw in draws]
  limit = 5 / np.sqrt(draws[0].size)
  for one in bits:
    assert np.abs(one.mean((0, 1))).max() < limit
    for moved in (one[1:] * one[:-1], one[:, 1:] * one[:, :-1], one[:, 8:] * one[:, :-8], one[1:, 1:] * one[:-1, :-1]):
      assert np.abs(moved.mean((0, 1))).max() < limit
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert np.abs((bits[one] * bits[other]).mean((0, 1))).max() < limit
  assert len(np.unique(draws[0])) > draws[0].size - 10          # of 2^17 in 2^32, two are equal twice on average


def test_the_place_in_an_array_counts_and_not_its_axes():
  key = jax.random.key(3)
  np.testing.assert_array_equal(random_words(key, (6, 7, 8)).reshape(42, 8), random_words(key, (42, 8)))
