"""Sorting networks over lists of equally shaped arrays: every element is sorted with those at its place in the others.

Maxima and minima only, in an order that doesn't depend on the data: how a vector machine sorts many short lists at
once. Lists are as long as a power of two, and largest first.
"""

from jax import lax


def descending(rows: list) -> list:
  """Returns the rows sorted by an odd-even merge sort (Batcher, 1968); their number is a power of two."""
  half = len(rows) // 2
  return merged(descending(rows[:half]), descending(rows[half:])) if half else rows


def merged(a: list, b: list) -> list:
  if len(a) == 1:
    return [lax.max(a[0], b[0]), lax.min(a[0], b[0])]
  even, odd = merged(a[::2], b[::2]), merged(a[1::2], b[1::2])
  inner = [pick(x, y) for x, y in zip(odd[:-1], even[1:]) for pick in (lax.max, lax.min)]
  return [even[0], *inner, odd[-1]]


def best_of(a: list, b: list) -> list:
  """Returns the larger half of two sorted lists, sorted: their maxima, one list turned, are a bitonic list."""
  return from_bitonic([lax.max(x, y) for x, y in zip(a, reversed(b))])


def from_bitonic(rows: list) -> list:
  half = len(rows) // 2
  if not half:
    return rows
  pairs = list(zip(rows[:half], rows[half:]))
  return from_bitonic([lax.max(x, y) for x, y in pairs]) + from_bitonic([lax.min(x, y) for x, y in pairs])
