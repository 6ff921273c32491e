"""How sure is a score? Intervals by the bootstrap, for everything that is a function of weighted studies.

A score here is a function of weights [R, n], how often each of n studies counts in each of R samples, that gives arrays
[R] (in nested dicts, such as metric -> [R]). Weights of one give the score itself; the weights of `resample` give what
it would have been on other draws of patients, all R at once, as products of matrices.

Subjects are drawn, each with all of its studies, as those of one person resemble each other (a test subject of
MIMIC-CXR has up to 46): drawing studies one by one would give intervals that are too narrow. Intervals are percentiles.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

NUM_SAMPLES = 1000
LEVEL = 0.95
ONE_SUBJECT = "left out: all studies are of one subject, which says nothing of others"

Score = Callable[[np.ndarray], Mapping]          # weights [R, n] -> nested dicts of arrays [R], or of None


def resample(subjects: Sequence[str], seed: int, num_samples: int = NUM_SAMPLES) -> np.ndarray:
  """Returns float64 [R, n]: how often each of n studies counts when their subjects are drawn with replacement.

  As many subjects are drawn as there are, by their names in alphabetical order: the draws of a subject depend on the
  seed and on which subjects there are, not on the order of the studies. A single subject is drawn every time and says
  nothing of others: R is 0 then, and what is computed from the weights has no intervals.

  Args:
    subjects: n, of each study; studies of one subject have the same.
    seed: of the draws.
    num_samples: R.
  """
  names, of_study = np.unique(np.asarray(list(map(str, subjects))), return_inverse=True)
  draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)),
                                                  num_samples if len(names) > 1 else 0)
  return draws[:, of_study].astype(np.float64)


def points(score: Score, num_studies: int) -> dict:
  """Returns the score of all studies, each counting once: nested dicts of floats."""
  return map_leaves(lambda values: None if values is None else float(values[0]), score(np.ones((1, num_studies))))


def intervals(score: Score, weights: np.ndarray) -> dict:
  """Returns {"low", "high"}, the 95 % interval, for each number of a score, in the same nested dicts.

  None for each without samples.
  """
  return intervals_of(score(weights))


def intervals_of(samples: Mapping) -> dict:
  """Returns {"low", "high"}, between which LEVEL of each array [R] lies, as much outside on either side.

  None stays None, and becomes of each array where R is 0.
  """
  leaves = []
  map_leaves(lambda array: array is None or leaves.append(array), samples)
  if leaves and not len(leaves[0]):
    return map_leaves(lambda array: None, samples)
  outside = (1 - LEVEL) / 2
  # All at once: a report has a thousand numbers, and one call of `quantile` costs as much as sorting an array.
  bounds = iter(np.quantile(leaves, [outside, 1 - outside], axis=1).T.tolist() if leaves else ())
  return map_leaves(lambda array: array if array is None else dict(zip(("low", "high"), next(bounds))), samples)


def differences(first: Score, second: Score, weights: np.ndarray) -> dict:
  """Returns {"difference", "low", "high"} of first minus second for each number: both see the same draws of subjects.

  What is None in either is None. Without samples "low" and "high" are.
  """
  ones = np.ones((1, weights.shape[1]))
  return differences_of(subtract(first(ones), second(ones)), subtract(first(weights), second(weights)))


def differences_of(point: Mapping, samples: Mapping) -> dict:
  """Returns {"difference", "low", "high"} for each number, of a difference [1] and its samples [R]."""
  return _join(map_leaves(lambda array: None if array is None else {"difference": float(array[0])}, point),
               intervals_of(samples))


def subtract(first: Mapping, second: Mapping) -> dict:
  """Returns nested dicts of first minus second; what is None in either is None."""
  return map_leaves(lambda a, b: None if a is None or b is None else a - b, first, second)


def _join(found: Mapping, bounds: Mapping | None) -> dict:
  if bounds is None or "low" in bounds:
    return {**found, **(bounds or {"low": None, "high": None})}
  return {key: below if below is None else _join(below, bounds[key]) for key, below in found.items()}


def map_leaves(function: Callable, *trees):
  """Returns nested dicts like the first, of `function` of the leaves that stand at the same place in each tree."""
  if isinstance(trees[0], Mapping):
    return {key: map_leaves(function, *(tree[key] for tree in trees)) for key in trees[0]}
  return function(*trees)
