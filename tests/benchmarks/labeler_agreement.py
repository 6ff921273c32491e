"""How far the labeler of rules agrees with the manual labels of IU X-Ray, and the ceiling that this sets for a model.

    python tests/benchmarks/labeler_agreement.py STUDIES.csv [--splits val test]

STUDIES.csv has a row a study: `findings`, `impression`, `r2gen_split` (train, val or test), `MeSH` (the manual codes of
Demner-Fushman et al., JAMIA 2016, as the data set gives them: "Pleural Effusion/left/small;..."), and a 0 or 1 for each
of COLUMNS and `normal`. It prints the tables of docs/labeler.md. A finding is positive where it is at least uncertain,
unless a row says otherwise.
"""

import argparse
import csv
import time

import numpy as np

from input_pipeline.text import clean
from mcsam_jax.labelers import rules

# Finding of CheXpert -> the column of manual labels that means the same. The overall scores are over these.
COLUMNS = {
    "Cardiomegaly": "Cardiomegaly", "Edema": "Edema", "Consolidation": "Consolidation", "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis", "Pneumothorax": "Pneumothorax", "Pleural Effusion": "Effusion",
}
# Finding -> manual codes that mean nearly the same: told apart, in no overall score.
CODES = {
    "Lung Lesion": ("Nodule", "Mass"),                     # calcified nodules too, which CheXpert leaves out
    "Pleural Other": ("Thickening",),                      # also of bronchi and septa
    "Lung Opacity": ("Opacity", "Infiltrate", "Airspace Disease", "Density", "Markings", "Cicatrix",
                     "Pulmonary Fibrosis", "Lung Diseases, Interstitial"),
    "Fracture": ("Fractures, Bone",),
    "Support Devices": ("Catheters, Indwelling", "Tube, Inserted", "Medical Device", "Implanted Medical Device",
                        "Stents"),
    "No Finding": ("normal",),
}
AT_LEAST_UNCERTAIN, POSITIVE = ("positive", "uncertain"), ("positive",)
READINGS = {                                               # name -> the text of a study that is labeled
    "findings + impression": lambda row: f"{row['findings']}\n\n{row['impression']}",
    "findings + impression, cleaned": lambda row: clean(f"{row['findings']} {row['impression']}", "iu_xray"),
    "findings": lambda row: row["findings"],
    "impression": lambda row: row["impression"],
}
ALL_ROWS = "findings + impression"


def manual(row: dict, finding: str) -> bool:
  if finding in COLUMNS:
    return row[COLUMNS[finding]] == "1"
  return any(code.split("/")[0].strip() in CODES[finding] for code in row["MeSH"].split(";"))


def rates(truth: list[bool], stated: list[bool]) -> dict[str, float]:
  hits = sum(one and other for one, other in zip(truth, stated))
  return {"support": sum(truth), "precision": hits / max(sum(stated), 1), "recall": hits / max(sum(truth), 1),
          "f1": 2 * hits / max(sum(truth) + sum(stated), 1)}


def read(rows: list[dict], reading: str = ALL_ROWS, counted=AT_LEAST_UNCERTAIN) -> list[dict[str, bool]]:
  """Returns for each study which findings its report states."""
  labels = (rules.label_report(READINGS[reading](row)) for row in rows)
  return [{finding: label in counted for finding, label in report.items()} for report in labels]


def agreement(rows: list[dict], stated: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
  """Returns the rates of each of COLUMNS and CODES, and over COLUMNS together: `micro`."""
  truth = {finding: [manual(row, finding) for row in rows] for finding in (*COLUMNS, *CODES)}
  found = {finding: [report[finding] for report in stated] for finding in truth}
  joint = [sum((values[finding] for finding in COLUMNS), []) for values in (truth, found)]
  return {finding: rates(truth[finding], found[finding]) for finding in truth} | {"micro": rates(*joint)}


def interval(rows: list[dict], stated: list[dict[str, bool]]) -> tuple[float, float]:
  """Returns where 95 % of the micro-F1 lie when the studies are drawn again, 2,000 times."""
  truth = np.array([[manual(row, finding) for finding in COLUMNS] for row in rows])               # [n, 7]
  found = np.array([[report[finding] for finding in COLUMNS] for report in stated])
  hits, both = (truth & found).sum(1), truth.sum(1) + found.sum(1)
  drawn = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
  return tuple(np.percentile(2 * hits[drawn].sum(1) / both[drawn].sum(1), [2.5, 97.5]))


def print_by_certainty(rows: list[dict]):
  """Prints how many findings that are stated plainly, as uncertain, or not at all are coded."""
  print("| | stated plainly: coded / not coded | only as uncertain: coded / not coded | coded, not read |")
  print("|" + " --- |" * 4)
  total = np.zeros(5, int)
  for finding in COLUMNS:
    coded = np.array([manual(row, finding) for row in rows])
    plain, stated = (np.array([report[finding] for report in read(rows, ALL_ROWS, counted)])
                     for counted in (POSITIVE, AT_LEAST_UNCERTAIN))
    counts = [(plain & coded).sum(), (plain & ~coded).sum(), (stated & ~plain & coded).sum(),
              (stated & ~plain & ~coded).sum(), (~stated & coded).sum()]
    total += counts
    print("| {} | {} / {} | {} / {} | {} |".format(finding, *counts))
  print("| all | {} / {} | {} / {} | {} |".format(*total))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("studies", help="STUDIES.csv")
  parser.add_argument("--splits", nargs="+", default=["val", "test"])
  args = parser.parse_args()
  with open(args.studies, newline="", encoding="utf-8") as file:
    studies = list(csv.DictReader(file))
  splits = {name: [row for row in studies if row["r2gen_split"] == name] for name in args.splits}

  start = time.process_time()
  scores = {name: agreement(rows, read(rows)) for name, rows in splits.items()}
  seconds = time.process_time() - start
  print("| | " + " | ".join(f"{name}: studies | precision | recall | F1" for name in splits) + " |")
  print("|" + " --- |" * (1 + 4 * len(splits)))
  for finding in (*COLUMNS, "micro", *CODES):
    cells = (f"{row['support']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f}"
             for row in (scores[name][finding] for name in splits))
    print(f"| {finding} | {' | '.join(cells)} |")

  print("\n| micro-F1 over the seven, against the manual labels | " + " | ".join(splits) + " |")
  print("|" + " --- |" * (1 + len(splits)))
  for reading in READINGS:
    print(f"| {reading} | " + " | ".join(f"{agreement(rows, read(rows, reading))['micro']['f1']:.3f}"
                                         for rows in splits.values()) + " |")
  for counted, name in ((AT_LEAST_UNCERTAIN, "95 % interval"), (POSITIVE, "95 % interval, uncertain as negative")):
    print(f"| {ALL_ROWS}: {name} | " + " | ".join(
        "{:.2f} to {:.2f}".format(*interval(rows, read(rows, ALL_ROWS, counted))) for rows in splits.values()) + " |")
  print(f"| {ALL_ROWS}, uncertain as negative: precision, recall, F1 | " + " | ".join(
      "{precision:.3f}, {recall:.3f}, {f1:.3f}".format(**agreement(rows, read(rows, ALL_ROWS, POSITIVE))["micro"])
      for rows in splits.values()) + " |")

  print(f"\n| micro-F1 over the seven, against the labels read from {ALL_ROWS} | " + " | ".join(splits) + " |")
  print("|" + " --- |" * (1 + len(splits)))
  for reading in list(READINGS)[1:]:
    cells = []
    for rows in splits.values():
      pairs = [(one[finding], other[finding]) for one, other in zip(read(rows), read(rows, reading))
               for finding in COLUMNS]
      cells.append(f"{rates(*map(list, zip(*pairs)))['f1']:.3f}")
    print(f"| {reading} | {' | '.join(cells)} |")
  print()
  print_by_certainty([row for rows in splits.values() for row in rows])
  total = sum(map(len, splits.values()))
  print(f"\n{total} studies in {seconds:.2f} s of CPU time: {total / seconds:.0f} a second")


if __name__ == "__main__":
  main()
