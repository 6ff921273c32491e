"""Draws an attention map over the image that it belongs to."""

import numpy as np
import PIL.Image

MAX_OPACITY = 0.65          # opacity of the color at the maximum of the attention


def draw_heat_map(image: np.ndarray, heat_map: np.ndarray, size: int) -> PIL.Image.Image:
  """Returns an image of `size` x `size` pixels in color: the film in gray, and the map over it from red to yellow.

  The map is stretched so that its largest value has the strongest color; where it is 0, the film is unchanged.

  Args:
    image: uint8 [S, S].
    heat_map: float [G, G] of attention, 0 or more.
    size: pixels.
  """
  from matplotlib import colormaps  # not at the top: it takes half a second
  film = PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BILINEAR)
  scaled = np.asarray(heat_map, np.float32) / max(float(heat_map.max()), np.finfo(np.float32).tiny)
  smooth = np.asarray(PIL.Image.fromarray(scaled).resize((size, size), PIL.Image.Resampling.BICUBIC)).clip(0, 1)
  color = colormaps["autumn"](smooth)[..., :3] * 255                                          # [size, size, 3]
  opacity = MAX_OPACITY * smooth[..., None]
  blended = (1 - opacity) * np.asarray(film, np.float32)[..., None] + opacity * color
  return PIL.Image.fromarray(np.rint(blended).astype(np.uint8))
