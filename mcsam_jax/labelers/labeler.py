"""The interface of all labelers: reports in, labels of findings out."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Labeler:
  """Labels the findings that reports state.

  Attributes:
    name: the kind of labeler, e.g. `rules`.
    findings: the findings that it labels; scores count these.
    label_distinct: returns {finding: one of LABEL_VALUES} for each report of a list without duplicates.
  """
  name: str
  findings: tuple[str, ...]
  label_distinct: Callable[[Sequence[str]], Sequence[Mapping[str, str]]]

  @classmethod
  def from_function(cls, name: str, findings: Sequence[str], label_report: Callable[[str], Mapping[str, str]]
                    ) -> "Labeler":
    """Returns a labeler that calls `label_report` for one report after the other."""
    return cls(name, tuple(findings), lambda reports: list(map(label_report, reports)))

  def label(self, reports: Sequence[str]) -> list[Mapping[str, str]]:
    """Returns {finding: one of LABEL_VALUES} for each report; equal reports are labeled once."""
    distinct = list(dict.fromkeys(reports))
    labels = dict(zip(distinct, self.label_distinct(distinct) if distinct else []))
    return [labels[report] for report in reports]
