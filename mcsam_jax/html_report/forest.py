"""The forest plot of the HTML report: each score with its interval, for the model, its control and the baselines.

A row is a system. Its mark says how the model compares with it on the same resampled subjects, which two intervals
side by side don't tell: studies that are hard for one system are hard for the others, too.
"""

from collections.abc import Mapping
import dataclasses
import math

from mcsam_jax.html_report.scores import BASELINE_NAMES, get_nested, get_protocol, make_cell, ScoreCell

NUM_TICKS = 4
METRICS = ("CIDEr", "micro-F1", "macro-F1", "BLEU-4", "METEOR", "ROUGE-L")
VERDICTS = ("ahead", "unclear", "behind")           # how the model compares with a baseline


@dataclasses.dataclass
class ForestRow:
  """One system.

  Attributes:
    verdict: one of VERDICTS; "" for the model itself, or where the difference isn't known.
  """
  name: str
  cell: ScoreCell
  verdict: str


@dataclasses.dataclass
class ForestPanel:
  """One metric; positions on the axis are value / largest.

  Attributes:
    largest: value at the right end of the axis, which begins at 0.
    ticks: labeled values.
    rows: the model first.
  """
  title: str
  largest: float
  ticks: list[float]
  rows: list[ForestRow]


def make_forest(scores: Mapping) -> list[ForestPanel]:
  """Returns one panel for each of METRICS that the model and another system have."""
  protocol, panels = get_protocol(scores), []
  for title in METRICS:
    is_label = title.endswith("-F1")
    kind = "labels" if is_label else "nlg"
    path = (title.removesuffix("-F1"), "f1") if is_label else (title.replace("-", "_"),)
    with_protocol = (kind, *path) if is_label else (kind, protocol, *path)
    systems = [("this model", (), with_protocol),
               ("shuffled images", ("controls", "shuffled_images"), with_protocol),
               *((name, ("baselines", key), (kind, *path)) for key, name in BASELINE_NAMES.items())]
    rows = [ForestRow(name, make_cell(scores, *prefix, *where),
                      _judge(get_nested(scores, *prefix, "model_minus_this", kind, *path)) if prefix else "")
            for name, prefix, where in systems]
    if not rows[0].cell.known or not any(row.cell.known for row in rows[1:]):
      continue
    rows = [row for row in rows if row.cell.known]
    step = _round_up(max(max(row.cell.value or 0, row.cell.high or 0) for row in rows) / NUM_TICKS)
    ticks = [step * number for number in range(NUM_TICKS + 1)]
    panels.append(ForestPanel(title, ticks[-1], ticks, rows))
  return panels


def _judge(difference: Mapping | None) -> str:
  """Returns the verdict from the interval of a paired difference, the model's score minus the other one's."""
  if not difference or difference.get("low") is None or difference.get("high") is None:
    return ""
  return "ahead" if difference["low"] > 0 else "behind" if difference["high"] < 0 else "unclear"


def _round_up(value: float) -> float:
  """Returns the next 1, 2, 2.5 or 5 times a power of ten."""
  if value <= 0:
    return 1.0
  power = 10 ** math.floor(math.log10(value))
  return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * (1 - 1e-9))
