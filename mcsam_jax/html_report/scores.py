"""The scores of `scoring.score_reports` as the tables and the chart of the HTML report.

Scores that are missing (intervals, labels, baselines) are left out. Names match those of `evaluation/score_table.py`.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from mcsam_jax.metrics.nlg import METRICS

# Where the probability of a finding comes from, by its key in `known_findings`.
KNOWLEDGE_SOURCES = {"samples": "the share of samples and retrieved reports that state it", "head": "the findings head"}
BASELINE_NAMES = {"constant": "constant report", "nearest": "nearest image", "medoid": "medoid of nearest images",
                  "nearest_model_features": "nearest (model features)",
                  "medoid_model_features": "medoid (model features)"}
RATES = ("precision", "recall", "f1")
AVERAGE_NAMES = {"macro": "macro (present)", "samples": "example-based", "example": "example-based"}


@dataclasses.dataclass
class ScoreCell:
  """A score and its 95 % interval; what is unknown is None."""
  value: float | None
  low: float | None = None
  high: float | None = None
  best: bool = False              # the highest of its column

  @property
  def known(self) -> bool:
    return self.value is not None

  @property
  def has_interval(self) -> bool:
    return self.low is not None and self.high is not None


@dataclasses.dataclass
class ScoreRow:
  """The scores of one system."""
  name: str
  cells: list[ScoreCell]
  kind: str = "baseline"          # model | subset (the model on some of the studies) | control | baseline


def get_protocol(scores: Mapping) -> str:
  """Returns the protocol of the scores that are shown: r2gen, that of published results, or else clean."""
  return (scores.get("preparation") or {}).get("main_protocol", "r2gen")


def make_main_table(scores: Mapping) -> tuple[list[str], list[ScoreRow]]:
  """Returns column titles and rows: the model, the model with shuffled images, and the baselines.

  CIDEr and F1, which tell models apart best, are the first columns: a phone shows no more without scrolling. Rows and
  columns without any score are left out.
  """
  protocol = get_protocol(scores)
  columns, titles = [("nlg", protocol, "CIDEr")], ["CIDEr"]
  if scores.get("labels"):
    columns += [("labels", "micro", "f1"), ("labels", "macro", "f1")]
    titles += ["micro-F1", "macro-F1"]
  others = [metric for metric in METRICS if metric != "CIDEr"]
  columns += [("nlg", protocol, metric) for metric in others]
  titles += [metric.replace("_", "-") for metric in others]
  for kind in ("radeval", "own_metrics"):
    columns += [(kind, name) for name in scores.get(kind) or ()]
    titles += [name.replace("_", " ") for name in scores.get(kind) or ()]
  without_protocol = [(path[0], path[-1]) if path[0] == "nlg" else path for path in columns]

  rows = [ScoreRow("this model", [make_cell(scores, *path) for path in columns], "model"),
          ScoreRow("this model, references not in the training set",
                   [make_cell(scores, "unseen_references", *path) for path in without_protocol], "subset"),
          ScoreRow("shuffled images", [make_cell(scores, "controls", "shuffled_images", *path) for path in columns],
                   "control")]
  rows += [ScoreRow(name, [make_cell(scores, "baselines", key, *path) for path in without_protocol])
           for key, name in BASELINE_NAMES.items()]

  rows = [row for row in rows if any(cell.known for cell in row.cells)]
  known_columns = [i for i in range(len(titles)) if any(row.cells[i].known for row in rows)]
  for i in known_columns:
    # The subset consists of other studies, so it is not compared.
    comparable = [row.cells[i] for row in rows if row.kind != "subset" and row.cells[i].known]
    best = max((cell.value for cell in comparable if cell.value is not None), default=None)
    for cell in comparable if len(comparable) > 1 else ():
      cell.best = cell.value == best
  return ([titles[i] for i in known_columns],
          [ScoreRow(row.name, [row.cells[i] for i in known_columns], row.kind) for row in rows])


def make_label_averages(scores: Mapping) -> list[ScoreRow]:
  """Returns precision, recall and F1 of every average of the label scores."""
  return [ScoreRow(", ".join(AVERAGE_NAMES.get(key, key.replace("_", " ")) for key in path),
                   [make_cell(scores, "labels", *path, rate) for rate in RATES])
          for path in _find_averages(scores.get("labels") or {})]


def make_finding_rows(scores: Mapping) -> list[dict]:
  """Returns one row per finding, the most frequent first: name, support, and a cell for each of RATES.

  Nothing is known about a finding that no reference has: its cells are empty rather than 0.
  `share` is the support divided by the largest support.
  """
  rates_by_finding = (scores.get("labels") or {}).get("per_finding", {})
  rows = [{"name": name, "support": rates.get("support", 0),
           **{rate: make_cell(scores, "labels", "per_finding", name, rate) if rates.get("support") else ScoreCell(None)
              for rate in RATES}}
          for name, rates in rates_by_finding.items()]
  largest = max([row["support"] for row in rows], default=0) or 1
  return [row | {"share": row["support"] / largest} for row in sorted(rows, key=lambda row: -row["support"])]


def list_statistics(scores: Mapping) -> list[tuple[str, str]]:
  """Returns (name, text) of each statistic that is known beside the scores, such as the diversity of the reports."""
  def percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"

  gain = get_nested(scores, "controls", "shuffled_images", "CIDEr_difference") or {}
  statistics = {
      "mean CIDEr gain over shuffled images": gain and f"{gain['mean']:.3f} per study" + (
          "" if gain["low"] is None else f" ({gain['low']:.3f} to {gain['high']:.3f})"),
      "distinct reports": scores.get("distinct_reports") and (
          f"{scores['distinct_reports']} of {scores['num_studies']}"),
      "most common report": percent(scores.get("most_common_report_fraction")),
      "copied from the training set": percent(scores.get("copied_from_train_fraction")),
      "words per report": scores.get("mean_num_words") and f"{scores['mean_num_words']:.1f}",
      "empty reports": scores.get("empty_fraction") and percent(scores["empty_fraction"]),
      "unknown words": percent(get_nested(scores, "unk_fraction", "words")),
      "unknown words in the references": percent(get_nested(scores, "preparation", "reference_unk_fraction")),
      "reports that contain xxxx": percent(scores.get("redacted_fraction")),
      "reports that mention an earlier study": percent(scores.get("prior_mention_fraction")),
      "memory slots used": percent(get_nested(scores, "memory_slot_usage", "either")),
      **{f"{name} right, where both reports state the finding": f"{counts['agree'] / counts['total']:.1%} of "
         f"{counts['total']}" for name, counts in (scores.get("attributes") or {}).items()},
      "labeler": scores.get("labeler"),
      "pretraining data": scores.get("pretraining_data"),
  }
  return [(name, text) for name, text in statistics.items() if text]


def make_cell(scores: Mapping, *path: str) -> ScoreCell:
  """Returns the score at a path, with its interval, which has the same path below "intervals"."""
  value, interval = get_nested(scores, *path), get_nested(scores.get("intervals"), *path)
  is_number = isinstance(value, (int, float)) and value == value                     # not NaN
  if not isinstance(interval, Mapping):
    interval = {}
  return ScoreCell(float(value) if is_number else None, interval.get("low"), interval.get("high"))


def get_nested(tree, *path: str) -> Any:
  """Returns the value at a path of nested mappings; None if the path does not exist."""
  for key in path:
    tree = tree.get(key) if isinstance(tree, Mapping) else None
  return tree


def _find_averages(tree: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  """Yields the path of every mapping that holds RATES, except those of single findings."""
  for key, value in tree.items():
    if key == "per_finding" or not isinstance(value, Mapping):
      continue
    if "f1" in value:
      yield *path, key
    else:
      yield from _find_averages(value, (*path, key))
