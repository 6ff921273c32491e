"""Samples phantom patients: their anatomy, and the kind, location and severity of their findings.

A finding is sampled once, as words and numbers that both views and the report
share, so that images and text can't disagree. Findings that would hide each
other (a nodule below the level of an effusion) are kept apart, so that every
reported finding is visible.
"""

import dataclasses

import numpy as np

# The findings that phantoms can have, a subset of `mcsam_jax.findings.FINDINGS`.
PHANTOM_FINDINGS = (
    "Cardiomegaly",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)
# Probabilities of 0, 1, 2 and 3 findings; each finding is then in about 15 % of the studies.
NUM_FINDINGS_PROBABILITIES = (0.33, 0.27, 0.25, 0.15)
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")
ZONE_HEIGHTS = {"upper": (0.2, 0.34), "mid": (0.42, 0.58), "lower": (0.66, 0.8)}   # apex 0, dome 1
NODULE_SIZES = (20, 26, 32, 40)              # mm
DEVICES = ("catheter", "tube", "pacemaker", "wires")

# Severity -> range of `extent`. Gaps between the ranges keep neighboring severities distinguishable.
CARDIOTHORACIC_RATIO = {"mild": (0.555, 0.585), "moderate": (0.6, 0.635), "marked": (0.65, 0.69)}
# Units: fraction of the lung's height; of the thorax's half width; of the air that is replaced.
EFFUSION_HEIGHT = {"small": (0.22, 0.3), "moderate": (0.38, 0.48), "large": (0.58, 0.7)}
PNEUMOTHORAX_RIM = {"small": (0.13, 0.18), "moderate": (0.23, 0.3), "large": (0.38, 0.48)}
EDEMA_HAZE = {"mild": (0.26, 0.32), "moderate": (0.38, 0.46), "severe": (0.56, 0.66)}


@dataclasses.dataclass(frozen=True)
class Patient:
  """Anatomy and exposure; lengths are in pixels of a 256 x 256 view unless stated otherwise."""
  center: float          # column of the midline
  half_width: float      # inner half width of the thorax at its widest
  half_depth: float      # half depth of the thorax, seen from the side
  apex: float            # row of the top of the lungs
  dome: float            # row of the dome of the right diaphragm
  dome_gap: float        # how much lower the left dome is
  dome_drop: float       # from the dome to the costophrenic angle
  heart_ratio: float     # normal cardiothoracic ratio
  heart_share: float     # fraction of the heart's width on the left of the midline
  heart_height: float    # height of the heart, in units of half_width
  knob: float            # width of the aortic knob, in units of half_width
  wall: float            # thickness of the soft tissue outside the ribs
  breast: float          # opacity of breast shadows; 0 for none
  rib_spacing: float     # distance between ribs
  rib_tilt: float        # slope of the ribs, in units of half_width
  rib_phase: float       # vertical offset of the ribs, in units of rib_spacing
  rib_opacity: float     # relative density of the ribs
  arms: float            # gap between chest and arms; large values move the arms out of the picture
  bubble: float          # radius of the gastric bubble; not drawn if small
  vessels: float         # opacity of the vessels
  exposure: float        # brightness of the film
  gamma: float           # contrast of the film
  slope: float           # brightness gradient from one side to the other
  noise: float           # standard deviation, at a full scale of 1
  angle: float           # tilt of the patient in degrees
  shear: float           # lateral bend of the spine


def sample_patient(rng: np.random.Generator) -> Patient:
  """Samples the anatomy and the exposure of a patient."""
  dome = rng.uniform(172, 206)
  return Patient(
      center=rng.uniform(116, 140), half_width=rng.uniform(78, 103), half_depth=rng.uniform(66, 84),
      apex=rng.uniform(24, 50), dome=dome, dome_gap=rng.uniform(-12, 16), dome_drop=rng.uniform(14, 38),
      heart_ratio=rng.uniform(0.38, 0.5), heart_share=rng.uniform(0.6, 0.76),
      heart_height=rng.uniform(0.55, 0.78), knob=rng.uniform(0.05, 0.13), wall=rng.uniform(10, 24),
      breast=max(0.0, rng.uniform(-0.17, 0.17)), rib_spacing=rng.uniform(17, 22),
      rib_tilt=rng.uniform(0.25, 0.5), rib_phase=rng.uniform(0, 1), rib_opacity=rng.uniform(0.6, 1.1),
      arms=rng.uniform(6, 60), bubble=rng.uniform(0, 20), vessels=rng.uniform(0.75, 1.15),
      exposure=rng.uniform(0.86, 1.12), gamma=rng.uniform(0.72, 1.08), slope=rng.uniform(-0.08, 0.08),
      noise=rng.uniform(0.008, 0.02), angle=rng.uniform(-4, 4), shear=rng.uniform(-0.05, 0.05))


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding; attributes that don't apply to it are "" or 0."""
  name: str              # one of PHANTOM_FINDINGS
  side: str = ""         # the patient's right | left | bilateral
  zone: str = ""         # one of ZONES
  severity: str = ""     # as the report words it
  kind: str = ""         # kind of device, one of DEVICES
  extent: float = 0.0    # see the ranges above; for a nodule its diameter in mm
  height: float = 0.0    # position of its center in the lung: apex 0, dome 1
  lateral: float = 0.0   # position of its center: mediastinum 0, chest wall 1
  depth: float = 0.0     # position of its center: sternum 0, back 1

  @property
  def sides(self) -> tuple[str, ...]:
    return SIDES if self.side == "bilateral" else (self.side,)


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
  """Samples up to three findings, in the order of PHANTOM_FINDINGS."""
  count = rng.choice(len(NUM_FINDINGS_PROBABILITIES), p=NUM_FINDINGS_PROBABILITIES)
  names = set(rng.permutation(PHANTOM_FINDINGS)[:count].tolist())
  findings = {}
  occupied = set()                           # (side, zone) pairs in which no further finding would be visible
  if "Cardiomegaly" in names:
    findings["Cardiomegaly"] = _sample_graded(rng, "Cardiomegaly", CARDIOTHORACIC_RATIO)
    occupied.add(("left", "lower"))
  if "Edema" in names:
    findings["Edema"] = _sample_graded(rng, "Edema", EDEMA_HAZE, "bilateral")
  if "Pleural Effusion" in names:
    both = "Atelectasis" not in names and rng.random() < 0.3
    side = "bilateral" if both else str(rng.choice(SIDES))
    effusion = findings["Pleural Effusion"] = _sample_graded(rng, "Pleural Effusion", EFFUSION_HEIGHT, side)
    occupied.update((s, z) for s in effusion.sides for z in ("lower", "mid")
                    if z == "lower" or effusion.severity == "large")
  if "Atelectasis" in names:
    under_fluid = findings["Pleural Effusion"].sides if "Pleural Effusion" in findings else ()
    # An enlarged heart covers the left base; use the right one unless it is under fluid.
    free = [side for side in SIDES if (side, "lower") not in occupied] or [
        side for side in SIDES if side not in under_fluid]
    side = "bilateral" if len(free) == 2 and rng.random() < 0.3 else str(rng.choice(free))
    findings["Atelectasis"] = Finding("Atelectasis", side, "lower")
    occupied.update((s, "lower") for s in findings["Atelectasis"].sides)
  if "Pneumothorax" in names:
    findings["Pneumothorax"] = _sample_graded(rng, "Pneumothorax", PNEUMOTHORAX_RIM, str(rng.choice(SIDES)))
    occupied.update((findings["Pneumothorax"].side, zone) for zone in ZONES)
  for name in ("Consolidation", "Lung Lesion"):
    if name in names:
      findings[name] = _sample_focal(rng, name, occupied)
      occupied.add((findings[name].side, findings[name].zone))
  if "Support Devices" in names:
    kind = str(rng.choice(DEVICES))
    left = {"catheter": 0.4, "pacemaker": 0.75}.get(kind)       # probability of the left side; others have no side
    side = "" if left is None else str(rng.choice(SIDES, p=(1 - left, left)))
    findings["Support Devices"] = Finding("Support Devices", side, kind=kind)
  return tuple(findings[name] for name in PHANTOM_FINDINGS if name in findings)


def _sample_graded(rng: np.random.Generator, name: str, grades: dict, side: str = "") -> Finding:
  """Samples a finding whose extent follows from its severity, one of `grades`."""
  severity = str(rng.choice(list(grades)))
  return Finding(name, side, severity=severity, extent=float(rng.uniform(*grades[severity])))


def _sample_focal(rng: np.random.Generator, name: str, occupied: set) -> Finding:
  """Samples a finding at one location, in a (side, zone) that isn't occupied."""
  free = [(side, zone) for side in SIDES for zone in ZONES if (side, zone) not in occupied]
  side, zone = free[rng.integers(len(free))]
  extent = rng.choice(NODULE_SIZES) if name == "Lung Lesion" else rng.uniform(0.22, 0.3)
  return Finding(name, side, zone, extent=float(extent), height=float(rng.uniform(*ZONE_HEIGHTS[zone])),
                 lateral=float(rng.uniform(0.35, 0.65)), depth=float(rng.uniform(0.3, 0.7)))
