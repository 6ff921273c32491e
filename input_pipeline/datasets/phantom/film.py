"""Drawing primitives that both views of a phantom radiograph share: soft masks, pen strokes, film exposure.

Large shapes are analytic masks with soft edges on a fixed pixel grid. Thin
structures (vessels, clavicles, catheters) are pen strokes that are drawn at
twice the size and then downsampled, which smooths their edges. `expose` turns
a density map into the film: tilted with the patient, blurred, noisy, brighter
or darker.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from input_pipeline.datasets.phantom.patient import Patient

SIZE = 256                                              # height and width of a view in pixels
X = np.arange(SIZE, dtype=np.float32)[None, :]          # [1, SIZE] columns
Y = np.arange(SIZE, dtype=np.float32)[:, None]          # [SIZE, 1] rows

# glibc returns the pages of every image-sized array to the operating system, and faulting them in again takes a
# third of the drawing time. Once it has freed a large allocation it keeps them.
np.empty(24 << 20, np.uint8)


def soft_step(distance: np.ndarray, width: float = 2.0) -> np.ndarray:
  """Returns 0 where `distance` is far below 0 and 1 where it is far above, with a soft edge of `width` pixels."""
  edge = distance * np.float32(1 / width)
  edge += np.float32(0.5)                               # in place: allocating costs more than the arithmetic
  return np.minimum(np.maximum(edge, 0, out=edge), 1, out=edge)


def soft_ellipse(x: float, y: float, radius_x: float, radius_y: float, edge: float) -> np.ndarray:
  """Returns the mask [SIZE, SIZE] of an ellipse whose soft edge is `edge` times its radius wide."""
  radius = np.sqrt(((X - x) / np.float32(radius_x)) ** 2 + ((Y - y) / np.float32(radius_y)) ** 2)
  return soft_step(1 - radius, edge)


def quarter_circle(t: np.ndarray) -> np.ndarray:
  """Returns a quarter circle that rises from 0 at t = 0 to 1 at t = 1 and is constant outside."""
  return np.sqrt(1 - (1 - np.clip(t, 0, 1)) ** 2)


def gaussian(t: np.ndarray, center: float, width: float) -> np.ndarray:
  """Returns exp(-((t - center) / width)^2)."""
  return np.exp(-(((t - center) / width) ** 2))


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
  """Returns smooth noise [SIZE, SIZE] with a standard deviation of about 0.7 and `cells` grains per side."""
  coarse = rng.standard_normal((cells, cells), dtype=np.float32)
  return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class Pen:
  """Draws smooth strokes on its own canvas; points are (x, y) in pixels of the view."""

  def __init__(self):
    self._canvas = Image.new("L", (2 * SIZE, 2 * SIZE))
    self._draw = ImageDraw.Draw(self._canvas)

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

  def render(self) -> np.ndarray:
    """Returns the drawing, float32 [SIZE, SIZE] in 0..1."""
    if not self._canvas.getbbox():           # the canvas is empty
      return np.zeros((SIZE, SIZE), np.float32)
    return np.asarray(self._canvas.reduce(2), np.float32) * np.float32(1 / 255)


def arc_points(start, end, sag: float, points: int = 9) -> list[tuple[float, float]]:
  """Returns points on an arc from `start` to `end`, bent by `sag` pixels (downwards for a line to the right)."""
  (x0, y0), (x1, y1) = start, end
  length = max(1.0, math.hypot(x1 - x0, y1 - y0))
  bend_x, bend_y = -4 * sag * (y1 - y0) / length, 4 * sag * (x1 - x0) / length
  steps = [i / (points - 1) for i in range(points)]
  return [(x0 + t * (x1 - x0) + t * (1 - t) * bend_x, y0 + t * (y1 - y0) + t * (1 - t) * bend_y)
          for t in steps]


def draw_vessel(pen: Pen, rng: np.random.Generator, x: float, y: float, angle: float, length: float,
                width: float, density: float) -> None:
  """Draws a vessel and, recursively, its ever thinner branches."""
  end_x, end_y = x + length * math.cos(angle), y + length * math.sin(angle)
  pen.stroke([(x, y), (end_x, end_y)], width, density)
  if width > 1.15:
    chance = rng.random(4).tolist()
    for bend, shrink in ((0.1 + 0.45 * chance[0], chance[1]), (-0.1 - 0.45 * chance[2], chance[3])):
      branch_length = length * (0.55 + 0.35 * shrink)
      draw_vessel(pen, rng, end_x, end_y, angle + bend, branch_length, width * 0.68, density * 0.8)


def expose(density: np.ndarray, metal: np.ndarray, patient: Patient, rng: np.random.Generator) -> np.ndarray:
  """Returns the film, uint8 [SIZE, SIZE], of a density map (about 0..1) with `metal` (0..1) drawn over it."""
  density = density * np.float32(patient.exposure) + patient.slope * (X / SIZE - 0.5)
  density = density + 0.015 * smooth_noise(rng, 12)
  density = np.clip(density * np.float32(1 / 1.35), 0, 1)      # bone stays below white, so that metal remains visible
  film = density ** np.float32(patient.gamma)
  film = np.maximum(film, metal)
  film = film + np.float32(patient.noise) * rng.standard_normal(film.shape, dtype=np.float32)
  # The affine transform tilts and shears the patient; its bilinear interpolation blurs the grain as a detector does.
  angle, middle = math.radians(patient.angle), SIZE / 2
  zoom = 0.92                                # keeps the corners that the tilt uncovers out of the picture
  cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
  bend = sin + zoom * patient.shear
  matrix = (cos, bend, middle * (1 - cos - bend), -sin, cos, middle * (1 + sin - cos))
  film = Image.fromarray(film).transform(
      (SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
  return np.clip(np.asarray(film) * 255, 0, 255).astype(np.uint8)
