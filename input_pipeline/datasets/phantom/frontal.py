"""Draws the frontal (PA) view of a phantom; the patient's right side is on the left of the image.

The chest is a density map of soft tissue from which the air in the lungs is
subtracted. Findings in the lungs replace air, as fluid and pus do. Ribs, vessels
and devices are added on top.
"""

import math

import numpy as np

from input_pipeline.datasets.phantom.film import (
  arc_points,
  draw_vessel,
  expose,
  gaussian,
  Pen,
  quarter_circle,
  SIZE,
  smooth_noise,
  soft_ellipse,
  soft_step,
  X,
  Y,
)
from input_pipeline.datasets.phantom.patient import Finding, Patient, SIDES

SIGN = {"right": -1, "left": 1}              # direction of each side along the columns
MILLIMETER = 1 / 140                         # in units of the thorax's half width


class Lung:
  """Geometry of one lung.

  Coordinates are `u`, the distance from the midline towards this side in units of the thorax's half width, and `t`,
  the height from 0 at the apex to 1 at the dome of the diaphragm.
  """

  def __init__(self, patient: Patient, side: str, raised: float, collapse: float):
    """Computes the borders of a lung.

    Args:
      patient: the anatomy.
      side: right or left.
      raised: how far the diaphragm is raised, in pixels.
      collapse: width of the rim of a pneumothorax, in half widths; 0 without one.
    """
    self.side, self.sign, self.width = side, SIGN[side], patient.half_width
    self.top = patient.apex
    self.dome = patient.dome + (patient.dome_gap if side == "left" else 0) - raised
    self.center, self.drop = patient.center, patient.dome_drop
    self.u = self.sign * (X - self.center) / np.float32(self.width)          # [1, SIZE]
    self.t = (Y - self.top) / np.float32(self.dome - self.top)               # [SIZE, 1]
    self.floor = (self.dome + self.drop * np.clip((self.u - 0.45) / 0.55, 0, 1.2) ** 2.4
                  + 8 * np.clip((0.45 - self.u) / 0.45, 0, 1) ** 2)          # [1, SIZE] row of the diaphragm
    self.inner = 0.47 - 0.3 * quarter_circle(self.t / 0.25)
    self.outer = 0.47 + 0.53 * quarter_circle(self.t / 0.8)
    self.shape = self._make_mask(self.inner, self.outer, self.top)
    self.collapse = collapse
    rim = collapse * (0.45 + 0.55 * np.exp(-((np.clip(self.t, 0, 1) / 0.55) ** 2)))
    self.pleura_top = self.top + 0.9 * collapse * self.width
    shrunk = (Y - self.pleura_top) / np.float32(self.dome - self.pleura_top)
    self.pleura = 0.45 + (0.55 - rim) * quarter_circle(shrunk / 0.8)

  def _make_mask(self, inner, outer, top) -> np.ndarray:
    """Returns the soft mask [SIZE, SIZE] between the borders `inner` and `outer`, below `top`, above the floor."""
    width = np.float32(self.width)
    return (soft_step((self.u - inner) * width, 4) * soft_step((outer - self.u) * width, 5)
            * soft_step(self.floor - Y, 3) * soft_step(Y - top, 3))

  def aerated(self) -> np.ndarray:
    """Returns the mask [SIZE, SIZE] of the part of the lung that isn't collapsed."""
    if not self.collapse:
      return self.shape
    return soft_step((self.pleura - self.u) * self.width, 2) * soft_step(Y - self.pleura_top, 2)

  def point(self, u: float, t: float) -> tuple[float, float]:
    """Converts lung coordinates to pixel coordinates (x, y)."""
    return self.center + self.sign * u * self.width, self.top + t * (self.dome - self.top)

  def locate(self, finding: Finding, heart: float) -> tuple[float, float]:
    """Returns the center (x, y) of a finding; `heart` is the border of the heart on this side, in half widths."""
    row = min(SIZE - 1, round(self.top + finding.height * (self.dome - self.top)))
    inner = max(float(self.inner[row, 0]) + 0.08, heart if finding.height > 0.6 else 0)
    outer = float(self.outer[row, 0]) - 0.04
    return self.point(inner + finding.lateral * (outer - inner), finding.height)


def draw(patient: Patient, findings: dict[str, Finding], rng: np.random.Generator) -> np.ndarray:
  """Draws the view, uint8 [SIZE, SIZE]; `findings` are keyed by name."""
  textures = rng.spawn(5)
  atelectasis, pneumothorax = findings.get("Atelectasis"), findings.get("Pneumothorax")
  lungs = [Lung(patient, side,
                raised=7 if atelectasis and side in atelectasis.sides else 0,
                collapse=pneumothorax.extent if pneumothorax and side == pneumothorax.side else 0)
           for side in SIDES]
  heart, borders = _draw_heart(patient, findings, lungs)
  air = sum(lung.shape for lung in lungs)
  opacity, lines = _draw_lung_findings(findings, lungs, borders, patient, textures[0])
  solid = np.maximum(_draw_mediastinum(patient, lungs), heart)
  air = air * (1 - np.float32(0.92) * solid) * (1 - opacity)

  vessels = _draw_vessels(patient, lungs, "Edema" in findings, textures[1])
  density = _draw_tissue(patient, lungs) + 0.1 * solid + _draw_spine(patient)
  density = density - air * np.float32(0.46) + vessels * air * np.float32(0.26)
  density = density + _draw_ribs(patient, lungs) * (np.float32(0.35) + np.float32(0.65) * np.minimum(air, 1))
  for lung in lungs:
    if lung.collapse:                        # air without lung tissue is darker
      outside = lung.shape * (1 - lung.aerated()) * (1 - solid) * (1 - opacity)
      density = density - 0.1 * outside
  density = density + lines + _draw_bones(patient, textures[2])
  return expose(density, _draw_devices(findings, patient, lungs, textures[3]), patient, textures[4])


def _draw_tissue(patient: Patient, lungs: list[Lung]) -> np.ndarray:
  """Returns the density of trunk, arms, breasts and abdomen, less the gastric bubble."""
  width, apex = patient.half_width, patient.apex
  side = width + patient.wall
  rows = [0, apex - 12, apex + 8, apex + 45, apex + 85, SIZE]
  half = np.interp(Y, rows, [34, 42, side + 38, side + 34, side + 4, side * 0.97]).astype(np.float32)
  distance = np.abs(X - patient.center)
  trunk = soft_step(half - distance, 10)
  arms = soft_step(distance - side - patient.arms, 6) * soft_step(Y - apex - 30, 30)
  tissue = 0.62 * np.maximum(trunk, 0.8 * arms) + 0.05
  abdomen = sum(soft_step(Y - lung.floor, 4) * soft_step(lung.u, 0.3) for lung in lungs)
  tissue = tissue + 0.14 * abdomen * trunk
  if patient.breast:
    for lung in lungs:
      x, y = lung.point(0.62, 0.92)
      tissue = tissue + patient.breast * soft_ellipse(x, y, 0.46 * width, 0.42 * width, 0.25)
  if patient.bubble > 6:
    x, y = lungs[1].point(0.45, 1.0)
    tissue = tissue - 0.16 * soft_ellipse(x, y + patient.bubble + 8, 1.4 * patient.bubble, 0.7 * patient.bubble, 0.4)
  return tissue


def _draw_mediastinum(patient: Patient, lungs: list[Lung]) -> np.ndarray:
  """Returns the mask of the great vessels with the aortic knob on the left, less the air of the trachea."""
  mask = np.float32(0)
  for lung in lungs:
    t = np.clip(lung.t, -0.5, 1)
    border = 0.19 + 0.05 * gaussian(t, -0.2, 0.2) + 0.03 * t
    if lung.side == "left":
      border = border + patient.knob * gaussian(t, 0.2, 0.075) + 0.06 * gaussian(t, 0.37, 0.07)
    else:
      border = border + 0.03 * gaussian(t, 0.3, 0.15)
    mask = mask + soft_step((border - lung.u) * lung.width, 4) * (lung.u >= 0)
  trachea = soft_step(4.5 - np.abs(X - patient.center - 1), 3) * soft_step(0.3 - lungs[0].t, 0.05)
  return mask * (1 - 0.6 * trachea)


def _draw_heart(patient: Patient, findings: dict, lungs: list[Lung]) -> tuple[np.ndarray, dict[str, float]]:
  """Returns the mask of the heart and its extent to each side, in half widths."""
  enlarged = findings.get("Cardiomegaly")
  ratio = enlarged.extent if enlarged else patient.heart_ratio
  reach = {"left": 2 * ratio * patient.heart_share, "right": 2 * ratio * (1 - patient.heart_share)}
  height = patient.half_width * patient.heart_height * (1.18 if enlarged else 1)
  mask = np.zeros((SIZE, SIZE), np.float32)
  for lung in lungs:
    # The left border is widest low down, at the apex of the heart; the right one is widest higher up.
    middle = lung.dome - (0.36 if lung.side == "left" else 0.45) * height
    below = np.clip((Y - middle) / (0.9 * height), 0, 1)
    above = np.clip((middle - Y) / (1.15 * height), 0, 1)
    border = reach[lung.side] * np.sqrt(1 - below ** 2) * (1 - above ** 2.1)
    mask = mask + soft_step((border - lung.u) * lung.width, 3.5) * (lung.u >= 0)
  return mask, {side: value + 0.04 for side, value in reach.items()}


def _draw_spine(patient: Patient) -> np.ndarray:
  """Returns the density of the spine with its discs."""
  column = soft_step(10.5 - np.abs(X - patient.center), 4)
  discs = 0.5 + 0.5 * np.cos(2 * np.pi * (Y / (0.95 * patient.rib_spacing) - patient.rib_phase))
  process = soft_step(2.2 - np.abs(X - patient.center), 2)
  return column * (np.float32(0.06) + np.float32(0.035) * discs) + process * np.float32(0.03) * discs


def _draw_ribs(patient: Patient, lungs: list[Lung]) -> np.ndarray:
  """Returns the density of posterior and anterior ribs, each a periodic function of the row, shifted by column."""
  width, spacing = patient.half_width, patient.rib_spacing
  u = np.clip(np.abs(X - patient.center) / np.float32(width), 0, 1.04)
  cage = soft_step((1.03 - np.abs(X - patient.center) / width) * width, 3) * soft_step(Y - patient.apex + 6, 8)
  cage = cage * soft_step((lungs[0].outer + 0.05 - u) * width, 4)
  behind = patient.rib_tilt * width * (u ** 2.2 - 0.35 * np.sin(np.pi * u))
  behind = behind + 14 * quarter_circle((u - 0.8) / 0.24)                        # ribs turn down at the side
  before = -patient.rib_tilt * width * 1.5 * (u - 0.35) + 6 * u
  out = np.float32(0)
  for fall, thickness, density in ((behind, 0.2, 0.12), (before, 0.24, 0.065)):
    phase = (Y - patient.apex - fall) / np.float32(spacing) + np.float32(patient.rib_phase)
    distance = np.abs(phase - np.rint(phase))                              # 0 in the middle of a rib, 0.5 between ribs
    band = soft_step(thickness - distance, 0.12)
    rim = band * soft_step(distance - thickness + 0.1, 0.1)                       # cortical bone
    bone = band * np.float32(0.65) + rim * np.float32(0.45)
    if fall is before:
      bone = bone * soft_step(u - 0.38, 0.12)                                     # costal cartilage casts no shadow
    out = out + bone * np.float32(density * patient.rib_opacity)
  return out * cage


def _draw_bones(patient: Patient, rng: np.random.Generator) -> np.ndarray:
  """Returns the density of the clavicles and the edges of the shoulder blades."""
  pen = Pen()
  width, top = patient.half_width, patient.apex
  rise, edge = rng.uniform(6, 18), rng.uniform(0.9, 1.08)
  for sign in SIGN.values():
    x = lambda u: patient.center + sign * u * width
    pen.stroke(arc_points((x(0.13), top + 22), (x(1.12), top + 14 - rise), sign * -5), 6.5, 0.45)
    pen.stroke(arc_points((x(0.13), top + 21), (x(1.12), top + 13 - rise), sign * -5), 3, 0.3)
    pen.stroke(arc_points((x(edge + 0.02), top + 8), (x(edge - 0.06), top + 78), sign * 6), 2, 0.16)
    pen.stroke(arc_points((x(edge - 0.06), top + 78), (x(edge + 0.3), top + 20), sign * 4), 2, 0.12)
  return pen.render() * np.float32(0.3)


def _draw_vessels(patient: Patient, lungs: list[Lung], congested: bool, rng: np.random.Generator) -> np.ndarray:
  """Returns the density of the hila and their vessels, which end at the visceral pleura."""
  pen, widening = Pen(), 1.35 if congested else 1
  for lung in lungs:
    x, y = lung.point(0.26, 0.45 if lung.side == "right" else 0.41)
    reach = patient.half_width * rng.uniform(0.24, 0.32)
    for slope in (np.linspace(-1.3, 1.3, 6) + rng.uniform(-0.2, 0.2, 6)).tolist():
      angle = slope if lung.sign > 0 else math.pi - slope
      start = (x + rng.uniform(-3, 3), y + 8 * slope)
      draw_vessel(pen, rng, *start, angle, reach * rng.uniform(0.7, 1.2), rng.uniform(2.2, 3.6) * widening,
                  min(1, 0.62 * widening))
    pen.stroke(arc_points((x - 2 * lung.sign, y - 12), (x, y + 16), 3 * lung.sign), 6, 0.75)
  sheet = pen.render() * np.float32(patient.vessels * (1.25 if congested else 1))
  for lung in lungs:
    if lung.collapse:
      sheet = np.where(lung.u >= 0, sheet * lung.aerated(), sheet)
  return sheet


def _draw_lung_findings(findings: dict, lungs: list[Lung], heart: dict, patient: Patient,
                        rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns the fraction of air that findings replace, and the density of their lines, both [SIZE, SIZE]."""
  effusion_rng, consolidation_rng, atelectasis_rng, edema_rng = rng.spawn(4)
  clear, pen = np.ones((SIZE, SIZE), np.float32), Pen()
  by_side = {lung.side: lung for lung in lungs}
  for lung in lungs:
    effusion = findings.get("Pleural Effusion")
    if effusion and lung.side in effusion.sides:
      # The fluid level rises towards the chest wall and forms a meniscus.
      height = effusion.extent * (lung.dome - lung.top) * effusion_rng.uniform(0.92, 1.08)
      base = lung.dome + 0.75 * lung.drop
      level = base - height * (0.35 + 0.65 * np.clip((lung.u - 0.15) / 0.85, 0, 1) ** 1.6)
      clear = clear * (1 - np.float32(0.93) * soft_step(Y - level, 5) * (lung.u >= 0))
    if "Edema" in findings:
      x, y = lung.point(0.36, 0.5)
      haze = np.exp(-(((X - x) / (0.34 * lung.width)) ** 2 + ((Y - y) / (0.42 * lung.width)) ** 2))
      haze = haze * (1 + 0.35 * smooth_noise(edema_rng, 36))
      clear = clear * (1 - np.clip(findings["Edema"].extent * haze, 0, 0.9) * (lung.u >= 0))
      for t in np.arange(0.66, 0.98, 0.06) + edema_rng.uniform(-0.02, 0.02):
        _, y = lung.point(0, float(t))       # Kerley B lines, perpendicular to the chest wall
        pen.stroke([lung.point(0.97, float(t)), (lung.point(0.8, 0)[0], y - 2)], 1.2, 0.4)
  if "Consolidation" in findings:
    finding = findings["Consolidation"]
    lung = by_side[finding.side]
    x, y = lung.locate(finding, heart[finding.side])
    radius = finding.extent * lung.width
    distance = np.sqrt(((X - x) / radius) ** 2 + ((Y - y) / (0.85 * radius)) ** 2)
    puffs = soft_step(1.15 - distance + 0.35 * smooth_noise(consolidation_rng, 22), 0.8)
    clear = clear * (1 - np.float32(0.75) * puffs * (lung.u >= 0))
  if "Lung Lesion" in findings:
    finding = findings["Lung Lesion"]
    lung = by_side[finding.side]
    x, y = lung.locate(finding, heart[finding.side])
    radius = finding.extent / 2 * MILLIMETER * lung.width
    clear = clear * (1 - np.float32(0.9) * soft_ellipse(x, y, radius, radius, 0.25))
  if "Atelectasis" in findings:
    for side in findings["Atelectasis"].sides:
      lung, start = by_side[side], max(0.4, heart[side] if side == "left" else 0)
      for t in (0.93, 0.83, 0.74):
        t, tilt = t + atelectasis_rng.uniform(-0.02, 0.02), atelectasis_rng.uniform(-0.05, 0.1)
        begin = lung.point(min(start, 0.55) + atelectasis_rng.uniform(0, 0.08), t)
        end = lung.point(0.9 - atelectasis_rng.uniform(0, 0.08), t - tilt)
        pen.stroke([begin, end], atelectasis_rng.uniform(3.8, 5), 0.95)
  lines = pen.render() * np.float32(0.27)
  for lung in lungs:
    if lung.collapse:
      edge = np.abs(lung.pleura - lung.u) * lung.width
      line = soft_step(1.1 - edge, 1) * soft_step(Y - lung.pleura_top, 2) * (lung.u > 0.45)
      cap = soft_step(1.1 - np.abs(Y - lung.pleura_top), 1) * soft_step(0.08 - np.abs(lung.u - 0.45), 0.03)
      lines = lines + 0.24 * np.maximum(line, cap) * lung.shape * clear
  return 1 - clear, lines


def _draw_devices(findings: dict, patient: Patient, lungs: list[Lung], rng: np.random.Generator) -> np.ndarray:
  """Returns the opacity of devices and the side marker, [SIZE, SIZE] in 0..1."""
  pen = Pen()
  pen.letter("L", min(SIZE - 26, patient.center + patient.half_width + 14), 6)
  device = findings.get("Support Devices")
  if device:
    _draw_device(pen, device, patient, {lung.side: lung for lung in lungs}, rng)
  return pen.render()


def _draw_device(pen: Pen, device: Finding, patient: Patient, lungs: dict, rng: np.random.Generator) -> None:
  """Draws a support device; `lungs` are keyed by side."""
  x, right = patient.center, lungs["right"]
  if device.kind == "catheter":              # from below the clavicle to the superior vena cava
    start, tip = lungs[device.side].point(1.0, 0.1), right.point(0.14, 0.42)
    bend = right.point(0.14, 0.14) if device.side == "right" else (x - 4, right.point(0, 0.17)[1])
    pen.stroke(arc_points(start, bend, -5 * SIGN[device.side]) + [bend, right.point(0.15, 0.28), tip], 2.4, 0.85)
  elif device.kind == "tube":
    end = right.point(0, 0.28)[1]
    pen.stroke([(x - 3, 0), (x - 2, end)], 1.6, 0.85)
    pen.stroke([(x + 4, 0), (x + 5, end - 4)], 1.6, 0.85)
  elif device.kind == "pacemaker":
    lung = lungs[device.side]
    box_x, box_y = lung.point(0.72, rng.uniform(0.16, 0.24))
    turns = np.linspace(0, 2 * np.pi, 24)
    pen.fill([(box_x + 13 * np.sign(c) * abs(c) ** 0.6, box_y + 11 * np.sign(s) * abs(s) ** 0.6)
              for c, s in zip(np.cos(turns).tolist(), np.sin(turns).tolist())], 0.85)
    bend, atrium, ventricle = right.point(0.1, 0.2), right.point(0.16, 0.72), lungs["left"].point(0.3, 0.92)
    for end in (atrium, ventricle):
      pen.stroke(arc_points((box_x, box_y - 9), bend, 6 * -lung.sign) + arc_points(bend, end, 6), 1.8, 0.85)
  else:                                      # sternotomy wires
    for t in np.arange(0.18, 0.9, 0.14).tolist():
      pen.ring(x + rng.uniform(-1, 1), right.point(0, t)[1], 5.5, 1.5, 0.9)
