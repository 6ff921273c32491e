"""Masks, pens and film: what both views of a phantom radiograph are drawn with.

Every large shape is an analytic mask with soft edges on a fixed grid of pixels.
Thin things (vessels, clavicles, catheters) are pen strokes at twice the size,
reduced, so that they have smooth edges. `expose` turns a sum of densities into
a film: blurred by the lean of the patient, grainy, brighter or darker.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256                                              # pixels of a view's side
X = np.arange(SIZE, dtype=np.float32)[None, :]          # [1, SIZE] columns
Y = np.arange(SIZE, dtype=np.float32)[:, None]          # [SIZE, 1] rows

# glibc gives pages back after each array of a picture's size, and faulting them in again costs a third of
# the drawing; once it has freed something large it keeps them.
np.empty(24 << 20, np.uint8)


def ramp(distance: np.ndarray, width: float = 2.0) -> np.ndarray:
  """Returns 0 where `distance` is far below 0, 1 far above, with a soft edge of `width` pixels."""
  edge = distance * np.float32(1 / width)
  edge += np.float32(0.5)                               # in place: new pages cost more than the arithmetic
  return np.minimum(np.maximum(edge, 0, out=edge), 1, out=edge)


def blob(x: float, y: float, radius_x: float, radius_y: float, edge: float) -> np.ndarray:
  """Returns an ellipse [SIZE, SIZE] whose edge is `edge` of its radius wide."""
  radius = np.sqrt(((X - x) / np.float32(radius_x)) ** 2 + ((Y - y) / np.float32(radius_y)) ** 2)
  return ramp(1 - radius, edge)


def circle_arc(t: np.ndarray) -> np.ndarray:
  """Returns the quarter circle that rises from 0 at t = 0 to 1 at t = 1, and stays there."""
  return np.sqrt(1 - (1 - np.clip(t, 0, 1)) ** 2)


def bump(t: np.ndarray, center: float, width: float) -> np.ndarray:
  return np.exp(-(((t - center) / width) ** 2))


def cloud(rng: np.random.Generator, cells: int) -> np.ndarray:
  """Returns smooth noise [SIZE, SIZE] of standard deviation about 0.7, `cells` grains across."""
  coarse = rng.standard_normal((cells, cells), dtype=np.float32)
  return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class Pen:
  """Draws smooth strokes on a sheet of its own; points are (x, y) in pixels of the view."""

  def __init__(self):
    self._sheet = Image.new("L", (2 * SIZE, 2 * SIZE))
    self._draw = ImageDraw.Draw(self._sheet)

  def stroke(self, points, width: float, density: float) -> None:
    doubled = [(2 * x, 2 * y) for x, y in points]
    self._draw.line(doubled, round(255 * density), max(1, round(2 * width)), "curve")

  def fill(self, points, density: float) -> None:
    self._draw.polygon([(2 * x, 2 * y) for x, y in points], round(255 * density))

  def ring(self, x: float, y: float, radius: float, width: float, density: float) -> None:
    self._draw.ellipse([2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius)],
                       outline=round(255 * density), width=max(1, round(2 * width)))

  def letter(self, text: str, x: float, y: float) -> None:
    self._draw.text((2 * x, 2 * y), text, 255, font_size=28)

  def sheet(self) -> np.ndarray:
    """Returns what was drawn, [SIZE, SIZE] in 0..1."""
    if not self._sheet.getbbox():            # nothing was
      return np.zeros((SIZE, SIZE), np.float32)
    return np.asarray(self._sheet.reduce(2), np.float32) * np.float32(1 / 255)


def arc(start, end, sag: float, points: int = 9) -> list[tuple[float, float]]:
  """Returns points from `start` to `end`, bent by `sag` pixels (downwards on a line to the right)."""
  (x0, y0), (x1, y1) = start, end
  length = max(1.0, math.hypot(x1 - x0, y1 - y0))
  bend_x, bend_y = -4 * sag * (y1 - y0) / length, 4 * sag * (x1 - x0) / length
  steps = [i / (points - 1) for i in range(points)]
  return [(x0 + t * (x1 - x0) + t * (1 - t) * bend_x, y0 + t * (y1 - y0) + t * (1 - t) * bend_y)
          for t in steps]


def branch(pen: Pen, rng: np.random.Generator, x: float, y: float, angle: float, length: float,
           width: float, density: float) -> None:
  """Draws a vessel and what it splits into, thinner and thinner."""
  end_x, end_y = x + length * math.cos(angle), y + length * math.sin(angle)
  pen.stroke([(x, y), (end_x, end_y)], width, density)
  if width > 1.15:
    chance = rng.random(4).tolist()
    for turn, shrink in ((0.1 + 0.45 * chance[0], chance[1]), (-0.1 - 0.45 * chance[2], chance[3])):
      length_then = length * (0.55 + 0.35 * shrink)
      branch(pen, rng, end_x, end_y, angle + turn, length_then, width * 0.68, density * 0.8)


def expose(density: np.ndarray, metal: np.ndarray, patient, rng: np.random.Generator) -> np.ndarray:
  """Returns the film, uint8 [SIZE, SIZE], of densities (about 0..1) and metal drawn over them."""
  density = density * np.float32(patient.exposure) + patient.slope * (X / SIZE - 0.5)
  density = density + 0.015 * cloud(rng, 12)
  density = np.clip(density * np.float32(1 / 1.35), 0, 1)      # bone stays below white: metal shows
  film = density ** np.float32(patient.gamma)
  film = np.maximum(film, metal)
  film = film + np.float32(patient.noise) * rng.standard_normal(film.shape, dtype=np.float32)
  # The patient leans and bends; the bilinear reading of pixels blurs the grain as a detector does.
  angle, middle = math.radians(patient.angle), SIZE / 2
  zoom = 0.92                                # the corners that a lean uncovers stay out of the picture
  cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
  bend = sin + zoom * patient.shear
  matrix = (cos, bend, middle * (1 - cos - bend), -sin, cos, middle * (1 + sin - cos))
  film = Image.fromarray(film).transform(
      (SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
  return np.clip(np.asarray(film) * 255, 0, 255).astype(np.uint8)
