"""Who stands before the film: a patient's anatomy, and what ails them, where and how much.

A finding is decided once, in words and in numbers that both views and the
report share, so that the picture and the text can't disagree. Findings that
would hide each other (a nodule below the level of an effusion) are kept apart:
whatever is reported can be seen.
"""

import dataclasses

import numpy as np

# The findings that are drawn, by their names in `records.FINDINGS`.
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
COUNT_SHARES = (0.33, 0.27, 0.25, 0.15)      # of studies with 0, 1, 2, 3 findings: each finding in about 15 %
SIDES = ("right", "left")
ZONES = ("upper", "mid", "lower")
ZONE_HEIGHTS = {"upper": (0.2, 0.34), "mid": (0.42, 0.58), "lower": (0.66, 0.8)}   # apex 0, dome 1
NODULE_SIZES = (20, 26, 32, 40)              # mm
DEVICES = ("catheter", "tube", "pacemaker", "wires")

# Severity in words -> range of `extent`. Gaps keep neighbouring words apart.
CARDIOTHORACIC_RATIO = {"mild": (0.555, 0.585), "moderate": (0.6, 0.635), "marked": (0.65, 0.69)}
# Units: the lung's height; the thorax's half width; the share of air that is replaced.
EFFUSION_HEIGHT = {"small": (0.22, 0.3), "moderate": (0.38, 0.48), "large": (0.58, 0.7)}
PNEUMOTHORAX_RIM = {"small": (0.13, 0.18), "moderate": (0.23, 0.3), "large": (0.38, 0.48)}
EDEMA_HAZE = {"mild": (0.26, 0.32), "moderate": (0.38, 0.46), "severe": (0.56, 0.66)}


@dataclasses.dataclass(frozen=True)
class Patient:
  """Anatomy and exposure; lengths in pixels of a view of 256 unless they say otherwise."""
  center: float          # column of the midline
  half_width: float      # of the thorax, inner, at its widest
  half_depth: float      # of the thorax, seen from the side
  apex: float            # row of the lungs' top
  dome: float            # row of the right diaphragm's dome
  dome_gap: float        # how much lower the left dome is
  dome_drop: float       # from the dome to the costophrenic angle
  heart_ratio: float     # normal cardiothoracic ratio
  heart_share: float     # part of the heart's width left of the midline
  heart_height: float    # in units of the thorax's half width
  knob: float            # of the aorta, in units of the thorax's half width
  wall: float            # soft tissue outside the ribs
  breast: float          # opacity of breast shadows; 0: none
  rib_spacing: float
  rib_tilt: float        # how steeply ribs fall, in units of the half width
  rib_phase: float       # of a spacing
  rib_opacity: float
  arms: float            # gap between chest and arms; large: out of the picture
  bubble: float          # radius of the stomach's air; small: none
  vessels: float         # opacity
  exposure: float        # brightness of the film
  gamma: float           # contrast of the film
  slope: float           # of brightness from one side to the other
  noise: float           # standard deviation, of full scale 1
  angle: float           # degrees that the patient leans
  shear: float           # of the spine


def sample_patient(rng: np.random.Generator) -> Patient:
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
  """One finding. What does not apply to it is "" or 0."""
  name: str              # one of PHANTOM_FINDINGS
  side: str = ""         # right | left | bilateral, of the patient
  zone: str = ""         # one of ZONES
  severity: str = ""     # the word of the report
  kind: str = ""         # of a device, one of DEVICES
  extent: float = 0.0    # how much, see the ranges above; a nodule's diameter in mm
  height: float = 0.0    # of its centre in the lung, apex 0, dome 1
  lateral: float = 0.0   # of its centre, mediastinum 0, chest wall 1
  depth: float = 0.0     # of its centre, sternum 0, back 1

  @property
  def sides(self) -> tuple[str, ...]:
    return SIDES if self.side == "bilateral" else (self.side,)


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
  """Returns up to three findings, in the order of PHANTOM_FINDINGS."""
  count = rng.choice(len(COUNT_SHARES), p=COUNT_SHARES)
  names = set(rng.permutation(PHANTOM_FINDINGS)[:count].tolist())
  found = {}
  taken = set()                              # (side, zone) that can't show anything more
  if "Cardiomegaly" in names:
    found["Cardiomegaly"] = _graded(rng, "Cardiomegaly", CARDIOTHORACIC_RATIO)
    taken.add(("left", "lower"))
  if "Edema" in names:
    found["Edema"] = _graded(rng, "Edema", EDEMA_HAZE, "bilateral")
  if "Pleural Effusion" in names:
    both = "Atelectasis" not in names and rng.random() < 0.3
    side = "bilateral" if both else str(rng.choice(SIDES))
    effusion = found["Pleural Effusion"] = _graded(rng, "Pleural Effusion", EFFUSION_HEIGHT, side)
    taken.update((s, z) for s in effusion.sides for z in ("lower", "mid")
                 if z == "lower" or effusion.severity == "large")
  if "Atelectasis" in names:
    under_fluid = found["Pleural Effusion"].sides if "Pleural Effusion" in found else ()
    # An enlarged heart covers the left base: the right one, unless that is under fluid.
    free = [side for side in SIDES if (side, "lower") not in taken] or [
        side for side in SIDES if side not in under_fluid]
    side = "bilateral" if len(free) == 2 and rng.random() < 0.3 else str(rng.choice(free))
    found["Atelectasis"] = Finding("Atelectasis", side, "lower")
    taken.update((s, "lower") for s in found["Atelectasis"].sides)
  if "Pneumothorax" in names:
    found["Pneumothorax"] = _graded(rng, "Pneumothorax", PNEUMOTHORAX_RIM, str(rng.choice(SIDES)))
    taken.update((found["Pneumothorax"].side, zone) for zone in ZONES)
  for name in ("Consolidation", "Lung Lesion"):
    if name in names:
      found[name] = _placed(rng, name, taken)
      taken.add((found[name].side, found[name].zone))
  if "Support Devices" in names:
    kind = str(rng.choice(DEVICES))
    left = {"catheter": 0.4, "pacemaker": 0.75}.get(kind)       # share on that side; others have no side
    side = "" if left is None else str(rng.choice(SIDES, p=(1 - left, left)))
    found["Support Devices"] = Finding("Support Devices", side, kind=kind)
  return tuple(found[name] for name in PHANTOM_FINDINGS if name in found)


def _graded(rng, name: str, grades: dict, side: str = "") -> Finding:
  severity = str(rng.choice(list(grades)))
  return Finding(name, side, severity=severity, extent=float(rng.uniform(*grades[severity])))


def _placed(rng, name: str, taken: set) -> Finding:
  free = [(side, zone) for side in SIDES for zone in ZONES if (side, zone) not in taken]
  side, zone = free[rng.integers(len(free))]
  extent = rng.choice(NODULE_SIZES) if name == "Lung Lesion" else rng.uniform(0.22, 0.3)
  return Finding(name, side, zone, extent=float(extent), height=float(rng.uniform(*ZONE_HEIGHTS[zone])),
                 lateral=float(rng.uniform(0.35, 0.65)), depth=float(rng.uniform(0.3, 0.7)))
