"""Bootstrap confidence intervals for every score that is a function of study weights.

Such a score maps weights [R, B], how often each of B studies counts in each of R resamples, to arrays [R], in nested
dicts such as metric -> [R]. Weights of 1 give the score itself. The weights of `resample` give the scores of resampled
patients, all R at once, by matrix products.

Subjects are resampled together with all of their studies, because studies of one person resemble each other (a test
subject of MIMIC-CXR has up to 46): resampling single studies would give intervals that are too narrow. Intervals are
percentiles.

A resample may contain nothing to score, for example no study with a certain finding. Its score is then NaN, and the
interval is that of the other resamples.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

NUM_SAMPLES = 1000
LEVEL = 0.95
ONE_SUBJECT_NOTE = "left out: all studies belong to one subject, which says nothing about other subjects"
# Least share of resamples in which a score is defined. One that depends on a single subject is undefined in 37 % of
# them, one that depends on two subjects in 14 %.
MIN_DEFINED_SHARE = 0.8

ScoreFn = Callable[[np.ndarray], Mapping]        # weights [R, B] -> nested dicts of arrays [R] or None


def resample(subjects: Sequence[str], seed: int, num_samples: int = NUM_SAMPLES) -> np.ndarray:
  """Returns float64 [R, B]: how often each of B studies counts when subjects are drawn with replacement.

  As many subjects are drawn as there are. The draws depend on the seed and on the set of subjects (in alphabetical
  order), not on the order of the studies. A single subject would be drawn every time and says nothing about others: R
  is 0 then, and scores get no intervals.

  Args:
    subjects: the subject of each study, B.
    seed: seed of the draws.
    num_samples: R.
  """
  names, subject_of_study = np.unique(np.asarray(list(map(str, subjects))), return_inverse=True)
  draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)),
                                                  num_samples if len(names) > 1 else 0)
  return draws[:, subject_of_study].astype(np.float64)


def compute_point_estimates(score: ScoreFn, num_studies: int) -> dict:
  """Returns the score of all studies as nested dicts of floats, with 0 where there is nothing to score."""
  return map_leaves(lambda values: None if values is None else float(values[0]),
                    replace_nan_with_zero(score(np.ones((1, num_studies)))))


def replace_nan_with_zero(scores: Mapping) -> dict:
  """Returns nested dicts of arrays with 0 for NaN: the reported score of all studies if there is nothing to score."""
  return map_leaves(lambda values: None if values is None else np.where(np.isnan(values), 0, values), scores)


def compute_intervals(score: ScoreFn, weights: np.ndarray) -> dict:
  """Returns {"low", "high"}, the 95 % interval, for each number of a score, in the same nested dicts.

  Args:
    score: the score.
    weights: [R, B]; with R = 0 every interval is None.
  """
  return compute_percentile_intervals(score(weights))


def compute_percentile_intervals(samples: Mapping) -> dict:
  """Returns {"low", "high"} for each array [R] of nested dicts: the central LEVEL of its values, without NaN.

  None stays None. The interval is None if fewer than MIN_DEFINED_SHARE of the values are defined.
  """
  leaves = []
  map_leaves(lambda array: array is None or leaves.append(array), samples)
  bounds = iter(_compute_bounds(np.array(leaves)) if leaves else ())
  return map_leaves(lambda array: array if array is None else next(bounds), samples)


def _compute_bounds(samples: np.ndarray) -> list[dict[str, float] | None]:
  """Returns the interval of each row of [L, R]."""
  if not samples.shape[1]:
    return [None] * len(samples)
  ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
  # One call for all rows: scores have a thousand numbers, and one call of `quantile` costs as much as sorting an array.
  bounds, defined_share = np.quantile(samples, ends, axis=1).T, 1 - np.isnan(samples).mean(1)       # [L, 2], [L]
  for row in np.flatnonzero((defined_share < 1) & (defined_share >= MIN_DEFINED_SHARE)):
    bounds[row] = np.nanquantile(samples[row], ends)
  return [{"low": low, "high": high} if is_defined else None
          for (low, high), is_defined in zip(bounds.tolist(), defined_share >= MIN_DEFINED_SHARE)]


def compute_differences(first: ScoreFn, second: ScoreFn, weights: np.ndarray) -> dict:
  """Returns {"difference", "low", "high"} of first minus second for each number, both on the same resamples [R, B].

  Numbers that are None in either score are None. "low" and "high" are None if too few resamples are defined.
  """
  ones = np.ones((1, weights.shape[1]))
  point = subtract(replace_nan_with_zero(first(ones)), replace_nan_with_zero(second(ones)))
  return summarize_differences(point, subtract(first(weights), second(weights)))


def summarize_differences(point: Mapping, samples: Mapping) -> dict:
  """Returns {"difference", "low", "high"} for each number, from its difference [1] and that of its resamples [R]."""
  differences = map_leaves(lambda array: None if array is None else {"difference": float(array[0])}, point)
  return _merge_intervals(differences, compute_percentile_intervals(samples))


def subtract(first: Mapping, second: Mapping) -> dict:
  """Returns nested dicts of first minus second; numbers that are None in either are None."""
  return map_leaves(lambda a, b: None if a is None or b is None else a - b, first, second)


def _merge_intervals(differences: Mapping, intervals: Mapping | None) -> dict:
  """Returns the differences with "low" and "high" added to each."""
  if intervals is None or "low" in intervals:
    return {**differences, **(intervals or {"low": None, "high": None})}
  return {key: value if value is None else _merge_intervals(value, intervals[key])
          for key, value in differences.items()}


def map_leaves(function: Callable, *trees):
  """Returns nested dicts like the first, with `function` applied to the corresponding leaves of all trees.

  A position where any tree has no dict, such as None, is a leaf of all of them.
  """
  if all(isinstance(tree, Mapping) for tree in trees):
    return {key: map_leaves(function, *(tree[key] for tree in trees)) for key in trees[0]}
  return function(*trees)
