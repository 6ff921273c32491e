"""How sure is a score? Intervals by the bootstrap, for everything that is a function of weighted studies.

A score here is a function of weights [R, n], how often each of n studies counts in each of R samples, that gives arrays
[R] (in nested dicts, such as metric -> [R]). Weights of one give the score itself; the weights of `resample` give what
it would have been on other draws of patients, all R at once, as products of matrices.

Subjects are drawn, each with all of its studies, as those of one person resemble each other (a test subject of
MIMIC-CXR has up to 46): drawing studies one by one would give intervals that are too narrow. Intervals are percentiles.

A draw may hold nothing to score: no study of the part that counts, none with the finding. There the score is NaN, and
the interval is of the other draws.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

NUM_SAMPLES = 1000
LEVEL = 0.95
ONE_SUBJECT_NOTE = "left out: all studies are of one subject, which says nothing of others"
MIN_DEFINED_SHARE = 0.8             # of the draws; what hangs on one subject is undefined in 37 % of them, on two in 14 %

ScoreFn = Callable[[np.ndarray], Mapping]          # weights [R, n] -> nested dicts of arrays [R], or of None


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


def compute_point_estimates(score: ScoreFn, num_studies: int) -> dict:
  """Returns the score of all studies, each counting once: nested dicts of floats, 0 where there is nothing to score."""
  return map_leaves(lambda values: None if values is None else float(values[0]),
                    replace_nan_with_zero(score(np.ones((1, num_studies)))))


def replace_nan_with_zero(scores: Mapping) -> dict:
  """Returns nested dicts of arrays with 0 for NaN, as the score of all studies is told where they hold nothing."""
  return map_leaves(lambda values: None if values is None else np.where(np.isnan(values), 0, values), scores)


def compute_intervals(score: ScoreFn, weights: np.ndarray) -> dict:
  """Returns {"low", "high"}, the 95 % interval, for each number of a score, in the same nested dicts.

  None for each without samples.
  """
  return percentile_intervals(score(weights))


def percentile_intervals(samples: Mapping) -> dict:
  """Returns {"low", "high"}, between which LEVEL of each array [R] lies, as much outside on either side.

  NaN counts on neither side. None stays None, and an array with too few numbers, or with none, is None.
  """
  leaves = []
  map_leaves(lambda array: array is None or leaves.append(array), samples)
  bounds = iter(_bounds(np.array(leaves)) if leaves else ())
  return map_leaves(lambda array: array if array is None else next(bounds), samples)


def _bounds(samples: np.ndarray) -> list[dict | None]:
  """Returns the interval of each row of [L, R]."""
  if not samples.shape[1]:
    return [None] * len(samples)
  ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  # All at once: a report has a thousand numbers, and one call of `quantile` costs as much as sorting an array.
  bounds, share = np.quantile(samples, ends, axis=1).T, 1 - np.isnan(samples).mean(1)           # [L, 2], [L]
  for row in np.flatnonzero((share < 1) & (share >= MIN_DEFINED_SHARE)):
    bounds[row] = np.nanquantile(samples[row], ends)
  return [dict(zip(("low", "high"), pair)) if enough else None
          for pair, enough in zip(bounds.tolist(), share >= MIN_DEFINED_SHARE)]


def compute_differences(first: ScoreFn, second: ScoreFn, weights: np.ndarray) -> dict:
  """Returns {"difference", "low", "high"} of first minus second for each number: both see the same draws of subjects.

  What is None in either is None. "low" and "high" are None where too few draws can tell, or none.
  """
  ones = np.ones((1, weights.shape[1]))
  point = subtract(replace_nan_with_zero(first(ones)), replace_nan_with_zero(second(ones)))
  return summarize_differences(point, subtract(first(weights), second(weights)))


def summarize_differences(point: Mapping, samples: Mapping) -> dict:
  """Returns {"difference", "low", "high"} for each number, of a difference [1] and its samples [R]."""
  return _join(map_leaves(lambda array: None if array is None else {"difference": float(array[0])}, point),
               percentile_intervals(samples))


def subtract(first: Mapping, second: Mapping) -> dict:
  """Returns nested dicts of first minus second; what is None in either is None."""
  return map_leaves(lambda a, b: None if a is None or b is None else a - b, first, second)


def _join(found: Mapping, bounds: Mapping | None) -> dict:
  if bounds is None or "low" in bounds:
    return {**found, **(bounds or {"low": None, "high": None})}
  return {key: below if below is None else _join(below, bounds[key]) for key, below in found.items()}


def map_leaves(function: Callable, *trees):
  """Returns nested dicts like the first, of `function` of the leaves that stand at the same place in each tree.

  Where one tree ends, as with None, that is a leaf of all.
  """
  if all(isinstance(tree, Mapping) for tree in trees):
    return {key: map_leaves(function, *(tree[key] for tree in trees)) for key in trees[0]}
  return function(*trees)
