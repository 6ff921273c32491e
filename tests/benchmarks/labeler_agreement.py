"""Measures how well the rule-based labeler agrees with the manual labels of IU X-Ray.

    python tests/benchmarks/labeler_agreement.py STUDIES.csv [--splits val test]

The agreement is also a ceiling for the scores of a model that is compared with these labels. STUDIES.csv has one row
per study with the columns `findings`, `impression`, `r2gen_split` (train, val or test), `MeSH` (the manual codes of
Demner-Fushman et al., JAMIA 2016, in the format of the dataset: "Pleural Effusion/left/small;..."), `normal`, and those
of COLUMNS; the last two hold 0 or 1. Prints the tables of docs/labeler.md. A finding counts as positive if it is at
least uncertain, unless a row says otherwise.
"""

import argparse
import csv
import time

import numpy as np

from input_pipeline.text import clean
from mcsam_jax.labelers import rules

# CheXpert finding -> the column of manual labels with the same meaning. The overall scores include only these.
COLUMNS = {
    "Cardiomegaly": "Cardiomegaly", "Edema": "Edema", "Consolidation": "Consolidation", "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis", "Pneumothorax": "Pneumothorax", "Pleural Effusion": "Effusion",
}
# CheXpert finding -> manual codes with nearly the same meaning. Reported separately, in no overall score.
CODES = {
    "Lung Lesion": ("Nodule", "Mass"),                     # includes calcified nodules, unlike CheXpert
    "Pleural Other": ("Thickening",),                      # includes that of bronchi and septa
    "Lung Opacity": ("Opacity", "Infiltrate", "Airspace Disease", "Density", "Markings", "Cicatrix",
                     "Pulmonary Fibrosis", "Lung Diseases, Interstitial"),
    "Fracture": ("Fractures, Bone",),
    "Support Devices": ("Catheters, Indwelling", "Tube, Inserted", "Medical Device", "Implanted Medical Device",
                        "Stents"),
    "No Finding": ("normal",),
}
AT_LEAST_UNCERTAIN, POSITIVE = ("positive", "uncertain"), ("positive",)
INPUTS = {                                                 # name -> function that returns the text to label
    "findings + impression": lambda row: f"{row['findings']}\n\n{row['impression']}",
    "findings + impression, cleaned": lambda row: clean(f"{row['findings']} {row['impression']}", "iu_xray"),
    "findings": lambda row: row["findings"],
    "impression": lambda row: row["impression"],
}
BOTH_SECTIONS = "findings + impression"


def has_manual_label(row: dict, finding: str) -> bool:
  """Returns whether the manual labels of a study include a finding of COLUMNS or CODES."""
  if finding in COLUMNS:
    return row[COLUMNS[finding]] == "1"
  return any(code.split("/")[0].strip() in CODES[finding] for code in row["MeSH"].split(";"))


def compute_scores(truth: list[bool], predicted: list[bool]) -> dict[str, float]:
  """Returns the support, precision, recall and F1 of predicted labels."""
  hits = sum(true and positive for true, positive in zip(truth, predicted))
  return {"support": sum(truth), "precision": hits / max(sum(predicted), 1), "recall": hits / max(sum(truth), 1),
          "f1": 2 * hits / max(sum(truth) + sum(predicted), 1)}


def label_studies(rows: list[dict], inputs: str = BOTH_SECTIONS,
                  positive_labels: tuple[str, ...] = AT_LEAST_UNCERTAIN) -> list[dict[str, bool]]:
  """Returns for each study which findings the labeler predicts.

  Args:
    rows: the studies.
    inputs: the text to label, a key of INPUTS.
    positive_labels: the labels that count as positive.
  """
  labels = (rules.label_report(INPUTS[inputs](row)) for row in rows)
  return [{finding: label in positive_labels for finding, label in report.items()} for report in labels]


def score_findings(rows: list[dict], predicted: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
  """Returns the scores of each finding of COLUMNS and CODES, and of all findings of COLUMNS pooled as "micro"."""
  truth = {finding: [has_manual_label(row, finding) for row in rows] for finding in (*COLUMNS, *CODES)}
  labels = {finding: [report[finding] for report in predicted] for finding in truth}
  pooled = [sum((values[finding] for finding in COLUMNS), []) for values in (truth, labels)]
  return {finding: compute_scores(truth[finding], labels[finding]) for finding in truth} | {
      "micro": compute_scores(*pooled)}


def bootstrap_interval(rows: list[dict], predicted: list[dict[str, bool]]) -> tuple[float, float]:
  """Returns the 95 % interval of the micro-F1 over COLUMNS: percentile bootstrap over studies, 2,000 samples."""
  truth = np.array([[has_manual_label(row, finding) for finding in COLUMNS] for row in rows])     # [B, 7]
  labels = np.array([[report[finding] for finding in COLUMNS] for report in predicted])
  hits, totals = (truth & labels).sum(1), truth.sum(1) + labels.sum(1)
  samples = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
  low, high = np.percentile(2 * hits[samples].sum(1) / totals[samples].sum(1), [2.5, 97.5])
  return low, high


def print_by_certainty(rows: list[dict]) -> None:
  """Prints how many findings labeled positive, labeled uncertain, and not found have a manual code."""
  print("| | positive: coded / not coded | uncertain: coded / not coded | coded, but not found |")
  print("|" + " --- |" * 4)
  total = np.zeros(5, int)
  for finding in COLUMNS:
    coded = np.array([has_manual_label(row, finding) for row in rows])
    positive, at_least_uncertain = (
        np.array([report[finding] for report in label_studies(rows, BOTH_SECTIONS, labels)])
        for labels in (POSITIVE, AT_LEAST_UNCERTAIN))
    uncertain = at_least_uncertain & ~positive
    counts = [(positive & coded).sum(), (positive & ~coded).sum(), (uncertain & coded).sum(),
              (uncertain & ~coded).sum(), (~at_least_uncertain & coded).sum()]
    total += counts
    print("| {} | {} / {} | {} / {} | {} |".format(finding, *counts))
  print("| all | {} / {} | {} / {} | {} |".format(*total))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("studies", help="CSV file with one row per study")
  parser.add_argument("--splits", nargs="+", default=["val", "test"], help="splits to score (default: val test)")
  args = parser.parse_args()
  with open(args.studies, newline="", encoding="utf-8") as file:
    studies = list(csv.DictReader(file))
  splits = {name: [row for row in studies if row["r2gen_split"] == name] for name in args.splits}

  start = time.process_time()
  scores = {name: score_findings(rows, label_studies(rows)) for name, rows in splits.items()}
  seconds = time.process_time() - start
  print("| | " + " | ".join(f"{name}: studies | precision | recall | F1" for name in splits) + " |")
  print("|" + " --- |" * (1 + 4 * len(splits)))
  for finding in (*COLUMNS, "micro", *CODES):
    cells = (f"{row['support']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f}"
             for row in (scores[name][finding] for name in splits))
    print(f"| {finding} | {' | '.join(cells)} |")

  print("\n| micro-F1 over the seven, against the manual labels | " + " | ".join(splits) + " |")
  print("|" + " --- |" * (1 + len(splits)))
  for inputs in INPUTS:
    print(f"| {inputs} | " + " | ".join(f"{score_findings(rows, label_studies(rows, inputs))['micro']['f1']:.3f}"
                                        for rows in splits.values()) + " |")
  for labels, name in ((AT_LEAST_UNCERTAIN, "95 % interval"), (POSITIVE, "95 % interval, uncertain as negative")):
    intervals = [bootstrap_interval(rows, label_studies(rows, BOTH_SECTIONS, labels)) for rows in splits.values()]
    print(f"| {BOTH_SECTIONS}: {name} | " + " | ".join(f"{low:.2f} to {high:.2f}" for low, high in intervals) + " |")
  micro = [score_findings(rows, label_studies(rows, BOTH_SECTIONS, POSITIVE))["micro"] for rows in splits.values()]
  print(f"| {BOTH_SECTIONS}, uncertain as negative: precision, recall, F1 | " + " | ".join(
      f"{row['precision']:.3f}, {row['recall']:.3f}, {row['f1']:.3f}" for row in micro) + " |")

  print(f"\n| micro-F1 over the seven, against the labels of {BOTH_SECTIONS} | " + " | ".join(splits) + " |")
  print("|" + " --- |" * (1 + len(splits)))
  for inputs in list(INPUTS)[1:]:
    cells = []
    for rows in splits.values():
      reference, predicted = ([report[finding] for report in label_studies(rows, name) for finding in COLUMNS]
                              for name in (BOTH_SECTIONS, inputs))
      cells.append(f"{compute_scores(reference, predicted)['f1']:.3f}")
    print(f"| {inputs} | {' | '.join(cells)} |")
  print()
  print_by_certainty([row for rows in splits.values() for row in rows])
  total = sum(map(len, splits.values()))
  print(f"\n{total} studies in {seconds:.2f} s of CPU time: {total / seconds:.0f} per second")


if __name__ == "__main__":
  main()
