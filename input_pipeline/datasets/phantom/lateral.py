"""Draws the lateral view of a phantom; the patient faces the left of the image.

The two lungs overlap in this view, so the side of a finding isn't visible. Its
height agrees with the frontal view, and its depth is `Finding.depth`.
"""

import math

import numpy as np

from input_pipeline.datasets.phantom.film import (
  arc_points,
  draw_vessel,
  expose,
  Pen,
  quarter_circle,
  SIZE,
  smooth_noise,
  soft_ellipse,
  soft_step,
  X,
  Y,
)
from input_pipeline.datasets.phantom.patient import Finding, Patient

MILLIMETER = 1 / 140                         # in units of the thorax's half width


class Chest:
  """Geometry of the thorax: columns of `front` and `back` for each row [SIZE, 1], row of the `floor` [1, SIZE]."""

  def __init__(self, patient: Patient, raised: float):
    """Computes the borders of the thorax; `raised` is how far the diaphragm is raised, in pixels."""
    depth = patient.half_depth
    self.width = patient.half_width
    self.top, self.dome = patient.apex + 8, patient.dome - raised
    self.center, self.depth = patient.center, depth
    self.t = (Y - self.top) / np.float32(self.dome - self.top)               # [SIZE, 1] apex 0, dome 1
    t = np.clip(self.t, 0, 1.4)
    self.front = self.center - depth * (0.05 + 0.95 * quarter_circle(t / 0.85))
    self.back = self.center + depth * (0.45 + 0.55 * np.sin(np.pi * np.clip(0.2 + 0.55 * t, 0, 1)))
    s = (X - self.center) / np.float32(depth)                                # front -1, back 1
    self.floor = (self.dome + 0.9 * patient.dome_drop * np.clip(s + 0.2, 0, 1.2) ** 2
                  + 10 * np.clip(-s - 0.3, 0, 1) ** 2)
    self.shape = (soft_step(X - self.front, 5) * soft_step(self.back - X, 6) * soft_step(self.floor - Y, 3)
                  * soft_step(Y - self.top, 10))

  def point(self, depth: float, t: float) -> tuple[float, float]:
    """Converts depth (sternum 0, back 1) and height t (apex 0, dome 1) to pixel coordinates (x, y)."""
    y = self.top + t * (self.dome - self.top)
    row = min(SIZE - 1, max(0, round(y)))
    front, back = float(self.front[row, 0]), float(self.back[row, 0])
    return front + depth * (back - front), y


def draw(patient: Patient, findings: dict[str, Finding], rng: np.random.Generator) -> np.ndarray:
  """Draws the view, uint8 [SIZE, SIZE]; `findings` are keyed by name."""
  textures = rng.spawn(4)
  chest = Chest(patient, raised=7 if "Atelectasis" in findings else 0)
  opacity, lines = _draw_lung_findings(findings, chest, textures[0])
  heart = _draw_heart(patient, findings, chest)
  solid = np.maximum(heart, 0.45 * _draw_mediastinum(chest))
  air = chest.shape * (1 - np.float32(0.8) * solid) * (1 - opacity)
  vessels = _draw_vessels(patient, chest, "Edema" in findings, textures[1])
  density = _draw_tissue(patient, chest) - np.float32(0.42) * air + vessels * air * np.float32(0.24)
  density = density + _draw_bones(patient, chest) * (0.3 + 0.7 * np.minimum(air, 1)) + lines
  return expose(density, _draw_devices(findings, chest, textures[2]), patient, textures[3])


def _draw_tissue(patient: Patient, chest: Chest) -> np.ndarray:
  """Returns the density of trunk, raised arms, shoulders, breasts and abdomen."""
  wall = patient.wall
  front = chest.front - 0.7 * wall - 30 * patient.breast * 4 * np.exp(-(((chest.t - 0.75) / 0.2) ** 2))
  trunk = soft_step(X - front, 8) * soft_step(chest.back + wall + 14 - X, 10)
  slant = chest.center - 0.35 * (chest.top - Y)                              # arms are raised to the front
  arms = soft_step(0.95 * chest.depth - np.abs(X - slant), 24) * soft_step(chest.top + 14 - Y, 36)
  trunk = trunk * soft_step(Y - chest.top - 4, 30)
  abdomen = soft_step(Y - chest.floor, 4) * trunk
  return 0.05 + 0.58 * np.maximum(trunk, arms) + 0.18 * arms + 0.16 * abdomen


def _draw_mediastinum(chest: Chest) -> np.ndarray:
  """Returns the mask of the aortic arch and the great vessels, with the trachea in front of them as a dark band."""
  trachea = soft_step(5 - np.abs(X - chest.point(0.5, 0.1)[0] - 8 * chest.t), 3) * soft_step(0.4 - chest.t, 0.1)
  x, y = chest.point(0.52, 0.24)
  return soft_ellipse(x, y, 0.4 * chest.depth, 40, 0.7) * (1 - trachea)


def _draw_heart(patient: Patient, findings: dict, chest: Chest) -> np.ndarray:
  """Returns the mask of the heart."""
  enlarged = findings.get("Cardiomegaly")
  ratio = enlarged.extent if enlarged else patient.heart_ratio
  x, y = chest.point(0.1 + 0.52 * ratio, 0.84)
  lean = 0.35 * (Y - y)                                                    # the apex points forward and down
  radius_x, radius_y = 1.15 * ratio * chest.depth, 0.66 * (ratio + 0.25) * chest.width
  return soft_step(1 - np.sqrt(((X - x + lean) / radius_x) ** 2 + ((Y - y) / radius_y) ** 2), 0.45)


def _draw_bones(patient: Patient, chest: Chest) -> np.ndarray:
  """Returns the density of the spine, the ribs, which descend to the front, and the sternum."""
  spine_x = chest.back - 0.16 * chest.depth
  distance = np.abs(X - spine_x)
  inside = soft_step(12 - distance, 4) * soft_step(Y - chest.top + 20, 20)
  phase = (Y + 0.25 * (X - spine_x)) / np.float32(0.95 * patient.rib_spacing) - np.float32(patient.rib_phase)
  vertebra = soft_step(0.4 - np.abs(phase - np.rint(phase)), 0.1)
  spine = inside * (np.float32(0.1) + np.float32(0.1) * vertebra)
  phase = (Y + 0.42 * (X - chest.center)) / np.float32(patient.rib_spacing) + np.float32(patient.rib_phase)
  band = soft_step(0.2 - np.abs(phase - np.rint(phase)), 0.12) * chest.shape * soft_step(X - chest.front - 12, 24)
  sternum = soft_step(4 - np.abs(X - chest.front + 3), 3)
  sternum = sternum * soft_step(chest.t - 0.1, 0.1) * soft_step(0.85 - chest.t, 0.1)
  return spine + np.float32(0.06 * patient.rib_opacity) * band + np.float32(0.12) * sternum


def _draw_vessels(patient: Patient, chest: Chest, congested: bool, rng: np.random.Generator) -> np.ndarray:
  """Returns the density of the hila and their vessels."""
  pen, widening = Pen(), 1.35 if congested else 1
  x, y = chest.point(0.52, 0.44)
  for angle in (np.linspace(0, 2 * math.pi, 9)[:8] + rng.uniform(-0.2, 0.2, 8)).tolist():
    draw_vessel(pen, rng, x, y, angle, chest.depth * rng.uniform(0.2, 0.32), rng.uniform(2.2, 3.2) * widening,
                min(1, 0.65 * widening))
  pen.stroke([(x - 4, y), (x + 6, y + 8)], 12, 0.8)
  return pen.render() * np.float32(patient.vessels * (1.25 if congested else 1))


def _draw_lung_findings(findings: dict, chest: Chest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns the fraction of air that findings replace, and the density of their lines, both [SIZE, SIZE]."""
  consolidation_rng, atelectasis_rng, edema_rng = rng.spawn(3)
  clear, pen = np.ones((SIZE, SIZE), np.float32), Pen()
  effusion, edema = findings.get("Pleural Effusion"), findings.get("Edema")
  if effusion:                               # fills the posterior costophrenic angle first
    height = effusion.extent * (chest.dome - chest.top)
    s = (X - chest.center) / np.float32(chest.depth)
    level = chest.dome + 22 - height * (0.3 + 0.7 * np.clip((s + 0.3) / 1.2, 0, 1) ** 2)
    clear = clear * (1 - np.float32(0.85 if effusion.side == "bilateral" else 0.65) * soft_step(Y - level, 5))
  if edema:
    x, y = chest.point(0.52, 0.48)
    haze = np.exp(-(((X - x) / (0.6 * chest.depth)) ** 2 + ((Y - y) / (0.5 * chest.width)) ** 2))
    clear = clear * (1 - np.clip(edema.extent * haze * (1 + 0.35 * smooth_noise(edema_rng, 36)), 0, 0.9))
  if "Consolidation" in findings:
    finding = findings["Consolidation"]
    x, y = chest.point(finding.depth, finding.height)
    radius = finding.extent * chest.width
    distance = np.sqrt((X - x) ** 2 + (Y - y) ** 2) / np.float32(radius)
    clear = clear * (1 - np.float32(0.6) * soft_step(1.15 - distance + 0.35 * smooth_noise(consolidation_rng, 22), 0.8))
  if "Lung Lesion" in findings:
    finding = findings["Lung Lesion"]
    x, y = chest.point(finding.depth, finding.height)
    radius = finding.extent / 2 * MILLIMETER * chest.width
    clear = clear * (1 - np.float32(0.75) * soft_ellipse(x, y, radius, radius, 0.3))
  if "Atelectasis" in findings:
    for t in (0.92, 0.84):
      t = t + atelectasis_rng.uniform(-0.02, 0.02)
      pen.stroke([chest.point(0.35, t), chest.point(0.75, t + atelectasis_rng.uniform(-0.03, 0.08))], 4, 0.9)
  if "Pneumothorax" in findings:             # a line below the apex; little else is visible from the side
    t = 0.9 * findings["Pneumothorax"].extent * 0.6
    pen.stroke(arc_points(chest.point(0.12, t + 0.14), chest.point(0.85, t + 0.1), -10), 1.6, 1)
  return 1 - clear, pen.render() * np.float32(0.2) * chest.shape


def _draw_devices(findings: dict, chest: Chest, rng: np.random.Generator) -> np.ndarray:
  """Returns the opacity of devices, [SIZE, SIZE] in 0..1."""
  pen, kind = Pen(), findings["Support Devices"].kind if "Support Devices" in findings else ""
  if kind == "catheter":
    pen.stroke(arc_points(chest.point(0.2, 0.05), chest.point(0.46, 0.18), -6) + [chest.point(0.45, 0.42)], 2.6, 0.9)
  elif kind == "tube":
    x, y = chest.point(0.5, 0.24)
    for shift in (-3, 3):
      pen.stroke([(x + shift - 6, 0), (x + shift, y)], 2.2, 0.95)
  elif kind == "pacemaker":
    box = chest.point(0.02, rng.uniform(0.14, 0.22))
    pen.stroke([(box[0] - 3, box[1] - 9), (box[0] + 1, box[1] + 10)], 7, 0.9)
    for end in (chest.point(0.45, 0.7), chest.point(0.16, 0.9)):
      pen.stroke(arc_points(box, chest.point(0.45, 0.2), -8) + arc_points(chest.point(0.45, 0.2), end, 8), 2.2, 0.9)
  elif kind == "wires":
    for t in np.arange(0.2, 0.86, 0.13).tolist():
      x, y = chest.point(0, t)
      pen.ring(x - 3, y, 4, 1.8, 1)
  return pen.render()
