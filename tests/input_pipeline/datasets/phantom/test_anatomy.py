import dataclasses

import numpy as np
import pytest

from input_pipeline.datasets.phantom.anatomy import draw_study, locate_findings
from input_pipeline.datasets.phantom.patient import Finding, PHANTOM_FINDINGS, sample_findings

# One finding of each kind, the region (rows, columns) of the frontal view that it must change, and the direction.
# The patient's right side is on the left of the image.
LEFT, RIGHT, ALL = slice(140, 240), slice(16, 116), slice(0, 256)
CASES = [
    (Finding("Cardiomegaly", severity="marked", extent=0.68), slice(120, 190), LEFT, "brighter"),
    (Finding("Lung Lesion", "right", "mid", extent=30, height=0.5, lateral=0.5, depth=0.5),
     slice(80, 150), RIGHT, "brighter"),
    (Finding("Edema", "bilateral", severity="severe", extent=0.6), slice(70, 170), ALL, "brighter"),
    (Finding("Consolidation", "left", "upper", extent=0.3, height=0.28, lateral=0.5, depth=0.5),
     slice(40, 120), LEFT, "brighter"),
    (Finding("Atelectasis", "right", "lower"), slice(120, 220), RIGHT, "brighter"),
    (Finding("Pneumothorax", "left", severity="large", extent=0.45), slice(20, 120), LEFT, "darker"),
    (Finding("Pleural Effusion", "right", severity="large", extent=0.6), slice(100, 220), RIGHT, "brighter"),
    (Finding("Support Devices", "left", kind="pacemaker"), slice(20, 120), LEFT, "brighter"),
]


@pytest.mark.parametrize("finding, rows, columns, sign", CASES, ids=lambda case: getattr(case, "name", None))
def test_finding_changes_its_region_of_the_same_patient(finding, rows, columns, sign):
  for seed in range(4):
    without, shown = draw_study(seed, findings=()), draw_study(seed, findings=(finding,))
    assert without.patient == shown.patient
    change = shown.images[0].astype(float) - without.images[0]
    inside = change[rows, columns]
    outside = (np.abs(change).sum() - np.abs(inside).sum()) / (change.size - inside.size)
    assert np.abs(inside).mean() > 3 * outside
    strong = np.abs(inside) > 12
    assert strong.sum() > 100
    assert inside[strong].mean() > 5 if sign == "brighter" else inside[strong].mean() < -5


@pytest.mark.parametrize("finding", [case[0] for case in CASES], ids=lambda finding: finding.name)
def test_finding_shows_in_the_lateral_view_too(finding):
  seed = next(seed for seed in range(20) if len(draw_study(seed).images) == 2)
  change = draw_study(seed, (finding,)).images[1].astype(float) - draw_study(seed, ()).images[1]
  assert (np.abs(change) > 12).sum() > 40


def test_finding_is_drawn_on_its_side():
  right = Finding("Pleural Effusion", "right", severity="large", extent=0.55)
  for seed in range(3):
    normal = draw_study(seed, ()).images[0].astype(float)
    left = dataclasses.replace(right, side="left")
    halves = [draw_study(seed, (finding,)).images[0] - normal for finding in (right, left)]
    assert halves[0][:, :118].sum() > 20 * np.abs(halves[0][:, 138:].sum())
    assert halves[1][:, 138:].sum() > 20 * np.abs(halves[1][:, :118].sum())


def test_studies_are_deterministic_and_well_exposed():
  assert all(np.array_equal(a, b) for a, b in zip(draw_study((1, 2)).images, draw_study((1, 2)).images))
  assert not np.array_equal(draw_study((1, 2)).images[0], draw_study((1, 3)).images[0])
  for seed in range(12):
    study = draw_study((9, seed))
    assert len(study.images) == len(study.views) and study.views[0] == "frontal"
    for image in study.images:
      assert image.shape == (256, 256) and image.dtype == np.uint8
      assert 30 < image.mean() < 190 and image.std() > 25
      assert (image == 255).mean() < 0.1                   # not overexposed


def test_prevalence_of_findings():
  drawn = [sample_findings(np.random.default_rng((0, i))) for i in range(3000)]
  names = [{finding.name for finding in findings} for findings in drawn]
  for name in PHANTOM_FINDINGS:
    assert 0.12 < np.mean([name in some for some in names]) < 0.2, name
  assert 0.3 < np.mean([not some for some in names]) < 0.37
  assert max(map(len, drawn)) == 3
  sides = [f.side for findings in drawn for f in findings if f.name == "Pneumothorax"]
  assert 0.4 < np.mean([side == "left" for side in sides]) < 0.6


def test_findings_never_hide_each_other():
  for i in range(2000):
    findings = {f.name: f for f in sample_findings(np.random.default_rng((1, i)))}
    places = [(f.side, f.zone) for name, f in findings.items() if name in ("Lung Lesion", "Consolidation")]
    assert len(set(places)) == len(places)
    for side, zone in places:
      if "Pneumothorax" in findings:
        assert side != findings["Pneumothorax"].side
      if "Pleural Effusion" in findings and zone == "lower":
        assert side not in findings["Pleural Effusion"].sides
    if {"Atelectasis", "Pleural Effusion"} <= findings.keys():
      assert not set(findings["Atelectasis"].sides) & set(findings["Pleural Effusion"].sides)


def test_masks_of_findings_are_on_their_side():
  for seed in range(6):
    masks = locate_findings(seed)
    study = draw_study(seed)
    assert list(masks) == [finding.name for finding in study.findings]
    for finding in study.findings:
      assert len(masks[finding.name]) == len(study.images)
      frontal = masks[finding.name][0]
      assert 30 < frontal.sum() < 0.6 * frontal.size
      if finding.side in ("left", "right") and finding.name != "Support Devices":      # a catheter crosses over
        x = np.nonzero(frontal)[1].mean()
        assert (x < study.patient.center) == (finding.side == "right"), finding
