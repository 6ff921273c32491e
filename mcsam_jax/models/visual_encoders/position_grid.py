"""Resizes the position embeddings of a vision transformer to another number of patches.

The values are those of `transformers`, which calls PyTorch's bicubic interpolation with a target size: cubic
convolution with a = -0.75, pixel centers at half-integers (`align_corners=False`), borders repeated, no antialiasing.

Shapes: n x n patches in the source, m x m in the target, D width.
"""

from collections.abc import Mapping
import math

import numpy as np

CUBIC_A = -0.75
POSITIONS = "params/position_embeddings"


def fit_position_embeddings(weights: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
                            ) -> dict[str, np.ndarray]:
  """Returns weights, by flat name, with position embeddings of the expected shape [1, 1 + m * m, D].

  The embedding of the class token stays as it is. Embeddings that aren't those of a square grid, or have another
  width, are returned unchanged.
  """
  stored, expected = weights.get(POSITIONS), shapes[POSITIONS]
  if stored is None or stored.ndim != 3 or stored.shape == expected or stored.shape[-1] != expected[-1]:
    return weights
  size, target = find_grid(stored.shape[1]), find_grid(expected[1])
  if not size or not target:
    return weights
  grid = stored[0, 1:].reshape(size, size, -1).astype(np.float64)
  matrix = make_resize_matrix(size, target)
  resized = np.einsum("an,bm,nmd->abd", matrix, matrix, grid, optimize=True).reshape(target * target, -1)
  return weights | {POSITIONS: np.concatenate([stored[0, :1], resized])[None].astype(stored.dtype)}


def find_grid(num_tokens: int) -> int:
  """Returns n for 1 + n * n tokens; 0 if they aren't a class token and a square grid."""
  size = math.isqrt(max(num_tokens - 1, 0))
  return size if size * size == num_tokens - 1 else 0


def make_resize_matrix(size: int, target: int) -> np.ndarray:
  """Returns the matrix [target, size] that resizes one axis by cubic convolution."""
  centers = (np.arange(target) + 0.5) * size / target - 0.5
  first = np.floor(centers).astype(int)
  matrix = np.zeros((target, size))
  for offset in (-1, 0, 1, 2):
    weights = _cubic(np.abs(centers - first - offset))
    np.add.at(matrix, (np.arange(target), np.clip(first + offset, 0, size - 1)), weights)
  return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
  """Returns Keys' convolution kernel (1981) at distances of at most 2 pixels."""
  near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance ** 2 + 1
  far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
  return np.where(distance <= 1, near, far)
