"""Maps the tensors of the `Dinov2Model` of `transformers` to Flax variables; RAD-DINO's files have the same names.

The attention layers have two sets of names, those of published files (`attention.attention.query`) and those of newer
versions of `transformers` (`attention.q_proj`).
"""

from collections.abc import Iterable, Mapping
import re

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.dinov2 import PATCH_SIZE
from mcsam_jax.models.visual_encoders.position_grid import find_grid
from mcsam_jax.models.visual_encoders.registry import ENCODERS
from mcsam_jax.pretrained.conversion import TensorMapping

PREFIX = "dinov2."                    # prefix of the names in models with a head
POSITIONS = "embeddings.position_embeddings"
EMBEDDINGS = {"embeddings.cls_token": "cls_token", POSITIONS: "position_embeddings",
              "embeddings.patch_embeddings.projection.weight": "patch_projection/kernel",
              "embeddings.patch_embeddings.projection.bias": "patch_projection/bias",
              "layernorm.weight": "norm/scale", "layernorm.bias": "norm/bias"}
PARTS = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "hidden", "mlp.fc2": "output",
         "attention.attention.query": "query", "attention.q_proj": "query",
         "attention.attention.key": "key", "attention.k_proj": "key",
         "attention.attention.value": "value", "attention.v_proj": "value",
         "attention.output.dense": "attention_output", "attention.o_proj": "attention_output"}
SCALES = {"layer_scale1.lambda1": "scale1", "layer_scale2.lambda1": "scale2"}


def is_dinov2(names: Iterable[str]) -> bool:
  """Returns whether these are the names of a DINOv2 model of `transformers`."""
  return any(name.removeprefix(PREFIX) == POSITIONS for name in names)


def is_ignored(name: str) -> bool:
  """Returns whether the image encoder doesn't need a tensor: the mask token, and heads of other models."""
  return name.removeprefix(PREFIX) == "embeddings.mask_token" or name.startswith("classifier.")


def needs_transpose(name: str) -> bool:
  """Returns whether the axes of a tensor have to be reordered; embeddings are [1, tokens, width] in both."""
  return not name.endswith(("_token", "position_embeddings"))


def to_flax_name(name: str, ndim: int) -> str | None:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions; None for tensors of another network."""
  name = name.removeprefix(PREFIX)
  if name in EMBEDDINGS:
    return f"params/{EMBEDDINGS[name]}"
  layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
  if layer is None:
    return None
  if layer[2] in SCALES:
    return f"params/layer_{layer[1]}/{SCALES[layer[2]]}"
  part, _, leaf = layer[2].rpartition(".")
  leaf = {"weight": "scale" if ndim == 1 else "kernel", "bias": "bias"}.get(leaf)
  return f"params/layer_{layer[1]}/{PARTS[part]}/{leaf}" if leaf and part in PARTS else None


MAPPING = TensorMapping(to_flax_name, is_ignored, needs_transpose)


def find_image_size(tensors: Mapping[str, np.ndarray], source: str) -> int:
  """Returns the image size whose patches have a checkpoint's position embeddings, in pixels.

  Raises:
    UserError: the embeddings aren't those of a square image.
  """
  positions = _get_positions(tensors)
  grid = find_grid(positions.shape[1]) if positions.ndim == 3 else 0
  if not grid:
    raise UserError(f"{source}: {POSITIONS} has the shape {list(positions.shape)}, expected [1, 1 + n * n, width] for "
                    "n x n patches")
  return grid * PATCH_SIZE


def detect_architecture(tensors: Mapping[str, np.ndarray], source: str) -> str:
  """Returns the DINOv2 encoder with the width of a checkpoint.

  Raises:
    UserError: there is none, or several that differ only in the normalization of images.
  """
  width = _get_positions(tensors).shape[-1]
  by_width = {name: spec.channels for name, spec in ENCODERS.items() if name.startswith("dinov2") or name == "rad_dino"}
  candidates = [name for name, channels in by_width.items() if channels == width]
  if not candidates:
    raise UserError(f"{source}: a DINOv2 of width {width}, expected one of "
                    + ", ".join(f"{name} ({channels})" for name, channels in by_width.items()))
  if len(candidates) > 1:
    raise UserError(f"{source}: weights of {' or of '.join(candidates)}, which have the same shapes and expect other "
                    f"images: say which with --architecture {candidates[-1]}")
  return candidates[0]


def _get_positions(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
  return next(tensor for name, tensor in tensors.items() if name.removeprefix(PREFIX) == POSITIONS)
