"""Draws phantom chest radiographs: a patient, what ails them, two views of both.

`draw_study` is a pure function of its seed. Patient, findings and the texture
of each view have random streams of their own, so the same patient can be drawn
with other findings, and the difference is what the findings did.
"""

import dataclasses

import numpy as np

from input_pipeline.datasets import phantom_frontal, phantom_lateral
from input_pipeline.datasets.phantom_patient import Finding, Patient, sample_findings, sample_patient

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
  draw = {"frontal": phantom_frontal.draw, "lateral": phantom_lateral.draw}
  images = tuple(draw[view](patient, by_name, rng) for view, rng in zip(views, view_rngs))
  return Study(patient, tuple(findings), views, images)
