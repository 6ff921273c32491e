"""Draws phantom chest radiographs: samples a patient and findings, and draws them in one or two views.

`draw_study` is a pure function of its seed. Patient, findings and the texture
of each view have separate random streams, so the same patient can be drawn with
other findings, and the images differ only by those findings.
"""

from collections.abc import Collection
import dataclasses

import numpy as np

from input_pipeline.datasets.phantom import frontal, lateral
from input_pipeline.datasets.phantom.patient import Finding, Patient, sample_findings, sample_patient

FRONTAL_ONLY_PROBABILITY = 0.15


@dataclasses.dataclass(frozen=True)
class PhantomStudy:
  """A drawn study: `images` are uint8 [256, 256], one per view, the frontal view first."""
  patient: Patient
  findings: tuple[Finding, ...]
  views: tuple[str, ...]                     # ("frontal",) or ("frontal", "lateral")
  images: tuple[np.ndarray, ...]


def draw_study(seed, findings: tuple[Finding, ...] | None = None) -> PhantomStudy:
  """Draws the study that belongs to a seed.

  Args:
    seed: an int or a sequence of ints.
    findings: findings to draw in this patient instead of those sampled from the seed.
  """
  patient_rng, findings_rng, *view_rngs = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
  patient = sample_patient(patient_rng)
  views = ("frontal",) if patient_rng.random() < FRONTAL_ONLY_PROBABILITY else ("frontal", "lateral")
  if findings is None:
    findings = sample_findings(findings_rng)
  by_name = {finding.name: finding for finding in findings}
  draw = {"frontal": frontal.draw, "lateral": lateral.draw}
  images = tuple(draw[view](patient, by_name, rng) for view, rng in zip(views, view_rngs))
  return PhantomStudy(patient, tuple(findings), views, images)


def locate_findings(seed, min_change: int = 12, only: Collection[str] | None = None
                    ) -> dict[str, tuple[np.ndarray, ...]]:
  """Returns the mask of each finding of `draw_study(seed)`, by name: bool [256, 256], one per view.

  A pixel belongs to a finding if drawing the study without that finding changes the pixel by more than `min_change`
  of 255 gray levels. The mask of an enlarged heart is thus the region of the enlargement, and that of a pneumothorax
  the region where lung is missing.

  Args:
    seed: an int or a sequence of ints.
    min_change: gray levels.
    only: names of findings to locate; None: all that the study has.
  """
  study = draw_study(seed)
  masks = {}
  for finding in study.findings:
    if only is not None and finding.name not in only:
      continue
    without = draw_study(seed, tuple(other for other in study.findings if other is not finding))
    masks[finding.name] = tuple(np.abs(image.astype(np.int16) - image_without) > min_change
                                for image, image_without in zip(study.images, without.images))
  return masks
