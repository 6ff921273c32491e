"""Numbers of any depth -> 8-bit shades of gray, without copies of the image in wider types.

Images may have many millions of pixels, so that what is computed in float64 is computed for one block of rows after
another, or once for each distinct value.
"""

from collections.abc import Callable, Iterator

import numpy as np

LUMINANCE = (0.299, 0.587, 0.114)                   # weights of red, green and blue; ITU-R BT.601
_BLOCK = 2 ** 20                                    # pixels that are computed at once
_MAX_TABLE = 2 ** 17                                # values between minimum and maximum for which a table is made


def stretch_to_uint8(values: np.ndarray, invert: bool = False) -> np.ndarray:
  """Returns `values` scaled linearly to uint8, the minimum as 0 and the maximum as 255.

  Args:
    values: finite numbers [height, width].
    invert: the maximum as 0 and the minimum as 255.
  """
  low, high = float(values.min()), float(values.max())
  stretched = np.empty(values.shape, np.uint8)
  for rows in _blocks(values):
    block = values[rows].astype(np.float64)
    offset = high - block if invert else block - low
    stretched[rows] = np.rint(offset * (255 / max(high - low, 1e-12)))
  return stretched


def to_luminance(pixels: np.ndarray) -> np.ndarray:
  """Returns the luminance of integers [height, width, 3], red first, rounded and in the same type [height, width]."""
  luminance = np.empty(pixels.shape[:2], pixels.dtype)
  for rows in _blocks(luminance):
    luminance[rows] = np.rint(pixels[rows] @ np.array(LUMINANCE))
  return luminance


def is_finite(values: np.ndarray) -> bool:
  """Returns whether no value is NaN or infinite."""
  return values.dtype.kind in "iub" or all(np.isfinite(values[rows]).all() for rows in _blocks(values))


def map_levels(values: np.ndarray, convert: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
  """Returns integers [height, width] with each value replaced by its shade, uint8.

  Args:
    values: the integers.
    convert: takes the distinct values in ascending order, int64 [L], and the number of pixels that have each, [L];
      returns the shade of each, uint8 [L].
  """
  low, size = int(values.min()), int(values.max()) - int(values.min()) + 1
  if size <= _MAX_TABLE:
    counts = np.zeros(size, np.int64)
    for rows in _blocks(values):
      counts += np.bincount((values[rows].astype(np.int64) - low).ravel(), minlength=size)
    present = np.flatnonzero(counts)
    table = np.zeros(size, np.uint8)
    table[present] = convert(present + low, counts[present])
    look_up = lambda block: table[block.astype(np.int64) - low]
  else:
    levels, counts = np.unique(values, return_counts=True)
    shades = convert(levels.astype(np.int64), counts)
    look_up = lambda block: shades[np.searchsorted(levels, block)]
  mapped = np.empty(values.shape, np.uint8)
  for rows in _blocks(values):
    mapped[rows] = look_up(values[rows])
  return mapped


def _blocks(values: np.ndarray) -> Iterator[slice]:
  """Yields slices of rows that together are the whole image."""
  step = max(1, _BLOCK // max(values[:1].size, 1))
  for start in range(0, len(values), step):
    yield slice(start, start + step)
