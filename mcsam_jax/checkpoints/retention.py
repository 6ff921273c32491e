"""Which checkpoints of a run are kept, and which one is the best."""

from collections.abc import Mapping
import math

LOWER_IS_BETTER = ("token_loss",)


def select_steps_to_keep(scores: Mapping[int, Mapping[str, float]], keep_last: int, best_metric: str) -> set[int]:
  """Returns which steps to keep: the last `keep_last` and the best.

  Args:
    scores: val scores of each step, {} for steps without.
    keep_last: number of last steps to keep.
    best_metric: see `find_best_step`.
  """
  best = find_best_step(scores, best_metric)
  return set(sorted(scores)[-keep_last:]) | ({best} if best is not None else set())


def find_best_step(scores: Mapping[int, Mapping[str, float]], metric: str) -> int | None:
  """Returns the step with the best val metric; the last step if no step has it, None if there are no steps."""
  values = {step: value for step, step_scores in scores.items()
            if isinstance(value := step_scores.get(metric), (int, float)) and math.isfinite(value)}
  if not values:
    return max(scores, default=None)
  sign = -1 if metric in LOWER_IS_BETTER else 1
  return max(values, key=lambda step: (sign * values[step], step))
