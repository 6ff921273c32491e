"""Clinical F1 against labels that people assigned: a check that doesn't depend on the labeler of the references.

A labeler that reads references and reports alike forgives its own mistakes, most of all where its findings also chose
the reports (`decode.utility`). Manual labels don't.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import io

from etils import epath
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.findings import FINDINGS
from mcsam_jax.metrics.clinical_f1 import compute_clinical_f1

# Columns that data sets call by another name.
ALIASES = {"effusion": "Pleural Effusion"}
VALUES = {"0": "negative", "0.0": "negative", "": "absent", "1": "positive", "1.0": "positive", "-1": "uncertain",
          "-1.0": "uncertain"}


def read_manual_labels(path: str, ids: Sequence[str]) -> tuple[list[dict[str, str]], tuple[str, ...]]:
  """Returns the manual labels of some studies, and the findings that the file has.

  Args:
    path: a CSV file with the column `id` and one column per finding: 1 present, 0 not, -1 uncertain, empty not labeled,
      as in CheXpert's files. Other columns are ignored.
    ids: B ids of studies.

  Returns:
    B mappings from finding to label.

  Raises:
    UserError: the file can't be read, lacks a study, has it twice, or a value is none of the above.
  """
  try:
    rows = list(csv.DictReader(io.StringIO(epath.Path(path).read_bytes().decode("utf-8-sig"))))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"eval.manual_labels={path} can't be read ({error}): expected a CSV file") from error
  columns = {column: finding for column in (rows[0] if rows else ()) if (finding := _find_finding(column))}
  if not rows or "id" not in rows[0] or not columns:
    raise UserError(f"eval.manual_labels={path}: expected the column id and a column for at least one of "
                    f"{', '.join(FINDINGS)}")
  by_id = {}
  for number, row in enumerate(rows, 2):
    if row["id"] in by_id:
      raise UserError(f"eval.manual_labels={path}: line {number} has an id that an earlier line has, too")
    by_id[row["id"]] = {}
    for column, finding in columns.items():
      value = (row[column] or "").strip()
      if value not in VALUES:
        raise UserError(f"eval.manual_labels={path}: line {number}, column {column}: expected 1, 0, -1 or nothing")
      by_id[row["id"]][finding] = VALUES[value]
  if missing := sum(study not in by_id for study in ids):
    raise UserError(f"eval.manual_labels={path} has no line for {missing} of {len(ids)} studies: its column id must "
                    "hold the ids of the records")
  return [by_id[study] for study in ids], tuple(finding for finding in FINDINGS if finding in columns.values())


def score_manual_labels(manual: Sequence[Mapping[str, str]], findings: Sequence[str],
                        label: Callable[[Sequence[str]], Sequence[Mapping[str, str]]], references: Sequence[str],
                        hypotheses: Sequence[str], shuffled: Sequence[Sequence[str]]) -> dict:
  """Returns the F1 of reports against manual labels, beside that of the references and of shuffled images.

  Args:
    manual: B mappings from finding to label.
    findings: the findings that both the file and the labeler know.
    label: reads the labels of reports.
    references: B reports. Their F1 is the ceiling: people who wrote them and people who labeled the studies differ, and
      so does the labeler.
    hypotheses: B generated reports.
    shuffled: lists of B reports that were generated from the images of other studies.

  Returns:
    {"findings", "model", "references", "shuffled_images"}; the last three have "micro_f1", "macro_f1" and
    "per_finding".
  """
  def score(reports: Sequence[str]) -> dict:
    rates = compute_clinical_f1(manual, label(reports), findings)
    return {"micro_f1": rates["micro"]["f1"], "macro_f1": rates["macro"]["f1"],
            "per_finding": {finding: {"f1": each["f1"], "support": each["support"]}
                            for finding, each in rates["per_finding"].items()}}

  scores: dict = {"findings": list(findings), "model": score(hypotheses), "references": score(references),
                  "shuffled_images": None}
  if shuffled:
    controls = [score(reports) for reports in shuffled]
    scores["shuffled_images"] = {
        **{name: float(np.mean([each[name] for each in controls])) for name in ("micro_f1", "macro_f1")},
        "per_finding": {finding: {"f1": float(np.mean([each["per_finding"][finding]["f1"] for each in controls])),
                                  "support": rates["support"]}
                        for finding, rates in scores["model"]["per_finding"].items()}}
  return scores


def _find_finding(column: str | None) -> str | None:
  """Returns the finding that a column holds, or None."""
  name = (column or "").replace("_", " ").strip().lower()
  return ALIASES.get(name) or next((finding for finding in FINDINGS if finding.lower() == name), None)
