"""Draws phantom chest radiographs: a patient, what ails them, two views of both.

`draw_study` is a pure function of its seed. Patient, findings and the texture
of each view have random streams of their own, so the same patient can be drawn
with other findings, and the difference is what the findings did.
"""

import dataclasses

import numpy as np

from input_pipeline.datasets.phantom import frontal, lateral
from input_pipeline.datasets.phantom.patient import Finding, Patient, sample_findings, sample_patient

FRONTAL_ONLY_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class Study:
  """A drawn study: `images` are uint8 [256, 256], one a view, the frontal first."""
  patient: Patient
  findings: tuple[Finding, ...]
  views: tuple[str, ...]                     # "frontal", and mostly "lateral"
  images: tuple[np.ndarray, ...]


def draw_study(seed, findings: tuple[Finding, ...] | None = None) -> Study:
  """Returns the study of a seed.

  Args:
    seed: int or sequence of ints.
    findings: drawn instead of the seed's own, in the same patient.
  """
  patient_rng, findings_rng, *view_rngs = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
  patient = sample_patient(patient_rng)
  views = ("frontal",) if patient_rng.random() < FRONTAL_ONLY_SHARE else ("frontal", "lateral")
  if findings is None:
    findings = sample_findings(findings_rng)
  by_name = {finding.name: finding for finding in findings}
  draw = {"frontal": frontal.draw, "lateral": lateral.draw}
  images = tuple(draw[view](patient, by_name, rng) for view, rng in zip(views, view_rngs))
  return Study(patient, tuple(findings), views, images)


def find_findings(seed, least_change: int = 12) -> dict[str, tuple[np.ndarray, ...]]:
  """Returns where each finding of `draw_study(seed)` is to be seen, by its name: bool [256, 256], one a view.

  A pixel belongs to a finding that changes it by more than `least_change` of 255 levels: the study is drawn once more
  without it. So an enlarged heart is where it is larger, and a pneumothorax where lung is missing.
  """
  study = draw_study(seed)
  places = {}
  for finding in study.findings:
    without = draw_study(seed, tuple(other for other in study.findings if other is not finding))
    places[finding.name] = tuple(np.abs(shown.astype(np.int16) - hidden) > least_change
                                 for shown, hidden in zip(study.images, without.images))
  return places
