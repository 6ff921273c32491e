"""The comparison of `compare.compare` as the table that a person reads in a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from mcsam_jax.evaluation.score_table import describe_differences
from mcsam_jax.metrics.bootstrap import MIN_DEFINED_SHARE
from mcsam_jax.metrics.clinical_f1 import RATES, UNCERTAIN

NO_INTERVAL = "-"


def format_comparison(result: Mapping) -> str:
  """Returns one row per score: A, B, A - B and its interval, with a star where the interval excludes 0.

  The last lines say on which metrics A is better, and hold the notes.
  """
  a, b, differences = result["a"], result["b"], result["a_minus_b"]
  subjects = f" of {result['num_subjects']} subjects" if result["num_subjects"] != result["num_studies"] else ""
  lines = [*(f"{name.upper()}: {', '.join(result[name]['files'])}" for name in "ab"),
           f"{result['num_studies']} studies{subjects}, protocol {result['protocol']}, labels: {result['labeler']}; "
           f"{result['num_samples']:,} resamples of subjects and runs",
           f"{'':<60}{'A':>8}{'B':>8}{'A - B':>9}   95% interval"]
  lines += [_format_row(metric.replace("_", "-"), a["nlg"][metric], b["nlg"][metric], differences["nlg"][metric])
            for metric in a["nlg"]]
  lines += [_format_row(f"{name} (RadEval, stored)", a["radeval"][name], b["radeval"][name], difference)
            for name, difference in differences["radeval"].items()]
  if differences["labels"]:
    systems = a["labels"], b["labels"], differences["labels"]
    for title, path in _list_averages(differences["labels"]):
      lines.append(_format_row(title, *(_get(labels, path) for labels in systems)))
    lines.append("F1 of each finding (number of references that have it), uncertain as negative")
    for finding, count in result["support"].items():
      path = ("per_finding", finding, "f1")
      lines.append(_format_row(f"  {finding} ({count})", *(_get(labels, path) for labels in systems)))
    lines.append("if A and B do not differ, about one interval in 20 excludes 0 by chance")
  if result["num_samples"] and any(line.endswith(f"   {NO_INTERVAL}") for line in lines):
    lines.append(f"{NO_INTERVAL}: no interval, because the score is undefined in more than {1 - MIN_DEFINED_SHARE:.0%} "
                 "of the resamples")
  lines.append(f"A compared with B: {describe_differences(differences) or 'no metric has an interval'}")
  return "\n".join([*lines, *(f"{name}: {note}" for name, note in result["notes"].items())])


def _list_averages(labels: Mapping) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Yields the title and path of each label average: F1 of all, precision and recall of the default ones."""
  for uncertain in UNCERTAIN:
    for findings in ("all_findings", "five_findings"):
      for average in labels[uncertain][findings] or ():
        rates = RATES if (uncertain, findings) == ("uncertain_negative", "all_findings") else ("f1",)
        for rate in rates:
          count = "14" if findings == "all_findings" and len(labels["per_finding"]) == 14 else (
              "all" if findings == "all_findings" else "5")
          name = "F1" if rate == "f1" else rate
          yield (f"{average.replace('_', ' ')} {name}, {count} findings, {uncertain.replace('_', ' as ')}",
                 (uncertain, findings, average, rate))


def _get(tree: Mapping, path: tuple[str, ...]) -> Any:
  """Returns the leaf at a path of nested mappings."""
  for key in path:
    tree = tree[key]
  return tree


def _format_row(title: str, a: float | None, b: float | None, difference: Mapping | None) -> str:
  if difference is None or a is None or b is None:      # the metric could not be computed
    return f"{title:<60}" + "".join(f"{'-' if value is None else f'{value:.3f}':>8}" for value in (a, b))
  row = f"{title:<60}{a:>8.3f}{b:>8.3f}{difference['difference']:>+9.3f}"
  if difference["low"] is None:                         # a single subject, or undefined in too many resamples
    return f"{row}   {NO_INTERVAL}"
  star = " *" if difference["low"] > 0 or difference["high"] < 0 else ""
  return f"{row}   {difference['low']:+.3f} to {difference['high']:+.3f}{star}"
