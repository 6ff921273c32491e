"""Draws an attention map over the image that it belongs to."""

import numpy as np
import PIL.Image

# Color and largest opacity are those of the HTML page (html_report/assets: page.css, heat.js).
COLOR = 32, 214, 196
MAX_OPACITY = 175 / 255


def draw_heat_map(image: np.ndarray, heat_map: np.ndarray, size: int) -> PIL.Image.Image:
  """Returns an image of `size` x `size` pixels in color: the film in gray, and the map over it in teal.

  Opacity grows with the square of the attention, so that weak attention everywhere leaves the film as it is. The map is
  stretched so that its largest value has the strongest color.

  Args:
    image: uint8 [S, S].
    heat_map: float [G, G] of attention, 0 or more.
    size: pixels.
  """
  film = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BILINEAR)
  scaled = np.asarray(heat_map, np.float32) / max(float(heat_map.max()), np.finfo(np.float32).tiny)
  smooth = np.asarray(PIL.Image.fromarray(scaled).resize((size, size), PIL.Image.Resampling.BILINEAR))
  opacity = MAX_OPACITY * smooth[..., None] ** 2                                              # [size, size, 1]
  blended = (1 - opacity) * np.asarray(film, np.float32)[..., None] + opacity * np.array(COLOR, np.float32)
  return PIL.Image.fromarray(np.rint(blended).astype(np.uint8))
