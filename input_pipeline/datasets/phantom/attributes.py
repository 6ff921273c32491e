"""Compares the details of findings that two phantom reports state: side, zone, severity, kind and size."""

from collections.abc import Iterable
import dataclasses

from input_pipeline.datasets.phantom.reports import ATTRIBUTES_BY_FINDING, read_findings

NAMES = ("side", "zone", "severity", "kind", "size")


@dataclasses.dataclass(frozen=True)
class AttributePair:
  """An attribute of a finding that both reports state; "" where a report doesn't give it."""
  finding: str
  name: str                      # one of NAMES
  reference: str
  generated: str


def compare_attributes(reference: str, generated: str) -> list[AttributePair]:
  """Returns the attributes of each finding that both reports state as positive, if at least one of them gives it."""
  pairs = []
  stated = read_findings(generated)
  for finding, theirs in read_findings(reference).items():
    ours = stated[finding]
    if theirs.state != "positive" or ours.state != "positive":
      continue
    for name in (*ATTRIBUTES_BY_FINDING[finding], *["size"] * (finding == "Lung Lesion")):
      values = [str(getattr(statement, name) or "") for statement in (theirs, ours)]
      if any(values):
        pairs.append(AttributePair(finding, name, *(f"{value} mm" if name == "size" and value else value
                                                    for value in values)))
  return pairs


def count_agreement(pairs: Iterable[AttributePair]) -> dict[str, dict[str, int]]:
  """Returns for each attribute how many pairs there are ("total"), and in how many both reports give the same value."""
  counts = {name: {"agree": 0, "total": 0} for name in NAMES}
  for pair in pairs:
    counts[pair.name]["total"] += 1
    counts[pair.name]["agree"] += pair.reference == pair.generated
  return {name: count for name, count in counts.items() if count["total"]}


def describe_differences(pairs: Iterable[AttributePair]) -> dict[str, str]:
  """Returns for each finding whose attributes differ how they do: "left instead of right"."""
  differences = {}
  for pair in pairs:
    if pair.reference != pair.generated:
      text = f"{pair.generated or f'no {pair.name}'} instead of {pair.reference or f'no {pair.name}'}"
      differences[pair.finding] = f"{differences[pair.finding]}, {text}" if pair.finding in differences else text
  return differences
