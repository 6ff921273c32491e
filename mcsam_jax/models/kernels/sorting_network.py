"""Sorting networks over lists of equally shaped arrays, applied to each position of the arrays separately.

They consist of maxima and minima in an order that doesn't depend on the data: the way a vector machine sorts many short
lists at once. The length of a list is a power of two, and sorted lists have the largest element first.
"""

from collections.abc import Sequence

import jax
from jax import lax


def sort_descending(rows: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns the rows sorted by an odd-even merge sort (Batcher, 1968)."""
  half = len(rows) // 2
  return merge_sorted(sort_descending(rows[:half]), sort_descending(rows[half:])) if half else list(rows)


def merge_sorted(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns two sorted lists of equal length merged into one sorted list."""
  if len(a) == 1:
    return [lax.max(a[0], b[0]), lax.min(a[0], b[0])]
  even, odd = merge_sorted(a[::2], b[::2]), merge_sorted(a[1::2], b[1::2])
  inner = [select(x, y) for x, y in zip(odd[:-1], even[1:]) for select in (lax.max, lax.min)]
  return [even[0], *inner, odd[-1]]


def merge_largest(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns the larger half of two sorted lists, sorted: the maxima of one and the other reversed are bitonic."""
  return sort_bitonic([lax.max(x, y) for x, y in zip(a, reversed(b))])


def sort_bitonic(rows: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns the rows of a bitonic list (rising, then falling, or rotated) sorted."""
  half = len(rows) // 2
  if not half:
    return list(rows)
  pairs = list(zip(rows[:half], rows[half:]))
  return sort_bitonic([lax.max(x, y) for x, y in pairs]) + sort_bitonic([lax.min(x, y) for x, y in pairs])
