"""Vocabulary shared by records, labels and scores: findings, their labels, their mentions in reports, and views.

It is separate from the record schema so that scoring a file of reports does not load TensorFlow.
"""

from typing import NamedTuple

# The 14 findings of CheXpert (Irvin et al., AAAI 2019), in the order of its csv.
FINDINGS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
LABEL_VALUES = ("absent", "negative", "uncertain", "positive")   # absent: not mentioned
VIEWS = ("frontal", "lateral", "other")


class FindingMention(NamedTuple):
  """A place where a report mentions a finding: the characters report[start:end]."""
  finding: str
  label: str                     # negative, uncertain or positive
  start: int
  end: int
