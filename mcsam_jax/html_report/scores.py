"""Scores as the page shows them: tables of numbers with their intervals, and a row of a chart for each finding.

Reads the dictionary of `scoring.score_reports`. What isn't in it (intervals, labels, baselines) isn't shown.
"""

from collections.abc import Iterator, Mapping
import dataclasses

from mcsam_jax.metrics.nlg import METRICS

PROTOCOL = "r2gen"              # of the table, what the literature reports; the others stand in the JSON file
BASELINES = (("constant", "constant report"), ("nearest", "nearest image's report"), ("medoid", "medoid of 30 nearest"),
             ("nearest_model_features", "nearest, own features"), ("medoid_model_features", "medoid, own features"))
RATES = ("precision", "recall", "f1")
NAMES = {"macro": "macro (present)", "samples": "example-based", "example": "example-based"}


@dataclasses.dataclass
class Cell:
  """A score and its 95 % interval, in so far as they are known."""
  value: float | None
  low: float | None = None
  high: float | None = None
  best: bool = False              # of its column

  @property
  def known(self) -> bool:
    return self.value is not None

  @property
  def interval(self) -> bool:
    return self.low is not None and self.high is not None


@dataclasses.dataclass
class Row:
  name: str
  cells: list[Cell]
  kind: str = "baseline"          # model | part of its reports | control | baseline


def main_table(scores: Mapping) -> tuple[list[str], list[Row]]:
  """Returns the columns and rows of the table: the model, the model that sees another study, and the baselines."""
  columns = [("nlg", PROTOCOL, metric) for metric in METRICS]
  titles = [metric.replace("_", "-") for metric in METRICS]
  if scores.get("labels"):
    columns += [("labels", "micro", "f1"), ("labels", "macro", "f1")]
    titles += ["micro-F1", "macro-F1"]
  columns += [("radeval", name) for name in scores.get("radeval") or ()]
  titles += [name.replace("_", " ") for name in scores.get("radeval") or ()]
  rows = [Row("this model", [_cell(scores, *path) for path in columns], "model"),
          Row("images shuffled", [_cell(scores, "controls", "shuffled_images", *path) for path in columns], "control")]
  for key, name in BASELINES:
    paths = [(kind, *(path[1:] if kind == "nlg" else path)) for kind, *path in columns]      # one protocol alone
    rows.append(Row(name, [_cell(scores, "baselines", key, *path) for path in paths]))
  rows.insert(1, Row("this model, reference not in train", [
      _cell(scores, "unseen_references", *((path[0], path[-1]) if path[0] == "nlg" else path)) for path in columns],
                     "part"))
  rows = [row for row in rows if any(cell.known for cell in row.cells)]
  kept = [i for i in range(len(titles)) if any(row.cells[i].known for row in rows)]
  for i in kept:
    comparable = [row.cells[i] for row in rows if row.kind != "part" and row.cells[i].known]
    for cell in comparable if len(comparable) > 1 else ():
      cell.best = cell.value == max(other.value for other in comparable)
  return [titles[i] for i in kept], [Row(row.name, [row.cells[i] for i in kept], row.kind) for row in rows]


def averages(scores: Mapping) -> list[Row]:
  """Returns precision, recall and F1 of every way in which the labels are averaged, whatever their number."""
  return [Row(", ".join(NAMES.get(part, part.replace("_", " ")) for part in path),
              [_cell(scores, "labels", *path, rate) for rate in RATES])
          for path in _with_rates(scores.get("labels") or {})]


def per_finding(scores: Mapping) -> list[dict]:
  """Returns name, support, and the cells precision, recall and f1 of each finding, the most frequent first."""
  found = (scores.get("labels") or {}).get("per_finding", {})
  rows = [{"name": name, "support": of.get("support", 0),
           **{rate: _cell(scores, "labels", "per_finding", name, rate) for rate in RATES}}
          for name, of in found.items()]
  largest = max([row["support"] for row in rows], default=0) or 1
  return [row | {"share": row["support"] / largest} for row in sorted(rows, key=lambda row: -row["support"])]


def facts(scores: Mapping) -> list[tuple[str, str]]:
  """Returns what else is known of the reports, as name and text."""
  def share(value):
    return None if value is None else f"{value:.1%}"

  unknown = scores.get("unk_fraction") or {}
  difference = _at(scores, "controls", "shuffled_images", "CIDEr_difference") or {}
  slots = scores.get("memory_slot_usage") or {}
  known = {
      "CIDEr that the images add": difference and f"{difference['mean']:.3f} a study" + (
          "" if difference["low"] is None else f" ({difference['low']:.3f} to {difference['high']:.3f})"),
      "different reports": scores.get("distinct_reports") and (
          f"{scores['distinct_reports']} of {scores['num_studies']}"),
      "commonest report": share(scores.get("most_common_report_fraction")),
      "word for word in train": share(scores.get("copied_from_train_fraction")),
      "words a report": scores.get("mean_num_words") and f"{scores['mean_num_words']:.1f}",
      "blank reports": scores.get("empty_fraction") and share(scores["empty_fraction"]),
      "unknown words": share(unknown.get("words")),
      "unknown words of the references": share((scores.get("preparation") or {}).get("reference_unk_fraction")),
      "reports with xxxx": share(scores.get("redacted_fraction")),
      "reports with claims about earlier studies": share(scores.get("prior_mention_fraction")),
      "slots of the memory that answer": share(slots.get("either")),
      "findings read by": scores.get("labeler"),
      "weights pretrained on": scores.get("pretraining_data"),
  }
  return [(name, text) for name, text in known.items() if text]


def _cell(scores: Mapping, *path: str) -> Cell:
  value, interval = _at(scores, *path), _at(scores.get("intervals"), *path)
  number = isinstance(value, (int, float)) and value == value
  if not isinstance(interval, Mapping):
    interval = {}
  return Cell(float(value) if number else None, interval.get("low"), interval.get("high"))


def _at(tree, *path: str):
  """Returns what stands at a path of nested mappings, None where it ends before."""
  for key in path:
    tree = tree.get(key) if isinstance(tree, Mapping) else None
  return tree


def _with_rates(tree: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  """Yields the path of every mapping below `tree` that holds rates, but of single findings."""
  for key, value in tree.items():
    if key == "per_finding" or not isinstance(value, Mapping):
      continue
    if "f1" in value:
      yield *path, key
    else:
      yield from _with_rates(value, (*path, key))
