"""Weights as a function of their names, by which parity files describe networks without storing them."""

import json
import pathlib
import zlib

import numpy as np

PARITY = pathlib.Path(__file__).parents[1] / "parity"


def draw_by_name(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the tensor that the parity files' rule gives a name of a PyTorch state dict."""
  rs = np.random.RandomState(zlib.crc32(name.encode()) & 0xffffffff)
  leaf = name.rpartition(".")[2]
  if leaf == "num_batches_tracked":
    return np.zeros(shape)
  if leaf == "running_var":
    return 0.5 + rs.random_sample(shape)
  noise = rs.standard_normal(shape)
  if leaf == "lambda1":
    return 0.5 + 0.1 * noise
  if leaf in ("cls_token", "mask_token", "position_embeddings"):
    return 0.5 * noise
  if len(shape) >= 2:
    return noise / np.sqrt(np.prod(shape[1:]))
  value = 1 + 0.1 * noise if leaf == "weight" else 0.1 * noise
  return value * (0.3 if name.endswith("bn3.weight") else 1)


def draw_state_dict(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict, float32, for the shapes of its names."""
  return {name: draw_by_name(name, tuple(shape)).astype(np.float32) for name, shape in shapes.items()}


def read_json(name: str) -> dict:
  return json.loads((PARITY / name).read_text())


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
  """Returns the largest difference, relative to the largest reference value."""
  return np.abs(actual - reference).max() / np.abs(reference).max()
