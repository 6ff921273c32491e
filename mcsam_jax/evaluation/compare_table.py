"""The comparison of `compare.compare` as the text that a person reads in a terminal."""

from collections.abc import Iterator, Mapping

from mcsam_jax.evaluation.score_table import paired_differences
from mcsam_jax.metrics.bootstrap import MIN_DEFINED
from mcsam_jax.metrics.clinical_f1 import RATES, UNCERTAIN

NO_INTERVAL = "-"


def format_comparison(result: Mapping) -> str:
  """Returns a row a score: A, B, their difference and its interval; a star where the interval excludes 0.

  The last lines say on which scores A is ahead, and the notes.
  """
  a, b, lead = result["a"], result["b"], result["a_minus_b"]
  subjects = f" of {result['num_subjects']} subjects" if result["num_subjects"] != result["num_studies"] else ""
  lines = [*(f"{name.upper()}: {', '.join(result[name]['files'])}" for name in "ab"),
           f"{result['num_studies']} studies{subjects}, protocol {result['protocol']}, labels: {result['labeler']}; "
           f"{result['num_samples']:,} draws of subjects and runs",
           f"{'':<58}{'A':>8}{'B':>8}{'A - B':>9}   95 % interval"]
  lines += [_row(metric.replace("_", "-"), a["nlg"][metric], b["nlg"][metric], lead["nlg"][metric])
            for metric in a["nlg"]]
  lines += [_row(f"{name} (RadEval, stored)", a["radeval"][name], b["radeval"][name], of)
            for name, of in lead["radeval"].items()]
  if lead["labels"]:
    for title, path in _averages(lead["labels"]):
      lines.append(_row(title, *(_at(of["labels"], path) for of in (a, b, lead))))
    lines.append("F1 of each finding (references that have it), uncertain negative")
    for finding, count in result["support"].items():
      path = ("per_finding", finding, "f1")
      lines.append(_row(f"  {finding} ({count})", *(_at(of["labels"], path) for of in (a, b, lead))))
    lines.append("of 20 intervals about one excludes 0 by chance, where nothing differs")
  if result["num_samples"] and any(line.endswith(f"   {NO_INTERVAL}") for line in lines):
    lines.append(f"{NO_INTERVAL}: more than {1 - MIN_DEFINED:.0%} of the draws hold nothing of it, too many for an interval")
  lines.append(f"A against B: {paired_differences(lead) or 'no score can tell'}")
  return "\n".join([*lines, *(f"{name}: {note}" for name, note in result["notes"].items())])


def _averages(labels: Mapping) -> Iterator[tuple[str, tuple]]:
  """Yields a title and the place of each average: F1 of all, precision and recall of the plain ones too."""
  for uncertain in UNCERTAIN:
    for findings in ("all_findings", "five_findings"):
      for average in labels[uncertain][findings] or ():
        shown = RATES if (uncertain, findings) == ("uncertain_negative", "all_findings") else ("f1",)
        for rate in shown:
          count = "14" if findings == "all_findings" and len(labels["per_finding"]) == 14 else (
              "all" if findings == "all_findings" else "5")
          name = "F1" if rate == "f1" else rate
          yield (f"{average.replace('_', ' ')} {name}, {count} findings, {uncertain.replace('_', ' ')}",
                 (uncertain, findings, average, rate))


def _at(tree: Mapping, path: tuple):
  for key in path:
    tree = tree[key]
  return tree


def _row(title: str, a: float | None, b: float | None, lead: Mapping | None) -> str:
  if lead is None:                                # nothing to compare
    return f"{title:<58}" + "".join(f"{'-' if value is None else f'{value:.3f}':>8}" for value in (a, b))
  row = f"{title:<58}{a:>8.3f}{b:>8.3f}{lead['difference']:>+9.3f}"
  if lead["low"] is None:                         # of a single subject, or in too few draws
    return f"{row}   {NO_INTERVAL}"
  star = " *" if lead["low"] > 0 or lead["high"] < 0 else ""
  return f"{row}   {lead['low']:+.3f} to {lead['high']:+.3f}{star}"
