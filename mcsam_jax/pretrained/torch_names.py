"""The names of a PyTorch state dict in terms of our variables, and which encoder a state dict is of.

Our encoders name their submodules as their sources do, so one rule serves all: `layer1.0.bn1.running_var`
is `batch_stats/layer1_0/bn1/var`. Convolutions turn from [out, in, k, k] into [k, k, in, out].
"""

import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder

CLASSIFIERS = ("fc.", "_fc.")             # what stands behind the features, and we leave behind


def flax_name(torch_name: str, ndim: int) -> str:
  """Returns the flat name of the variable that a tensor of `ndim` dimensions becomes."""
  module, _, leaf = torch_name.rpartition(".")
  collection, leaf = {
      "weight": ("params", "scale" if ndim == 1 else "kernel"),
      "running_mean": ("batch_stats", "mean"),
      "running_var": ("batch_stats", "var"),
  }.get(leaf, ("params", leaf))
  module = "/".join(part.lstrip("_") for part in re.sub(r"\.(\d+)", r"_\1", module).split("."))
  return f"{collection}/{module}/{leaf}"


def flax_layout(tensor: np.ndarray) -> np.ndarray:
  """Returns a tensor with its axes in Flax's order: [out, in, k, k] -> [k, k, in, out]."""
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape in a state dict of a variable whose shape is `shape`."""
  return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]


def turned(torch_name: str) -> bool:
  """Tells whether a tensor's axes are to be put in Flax's order."""
  return True


def is_left_behind(torch_name: str) -> bool:
  """Tells whether a tensor has no place in an encoder by design: a classifier, or a counter of batch norm."""
  return torch_name.startswith(CLASSIFIERS) or torch_name.endswith(".num_batches_tracked")


def expected_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each variable of an encoder by flat name."""
  variables = jax.eval_shape(make_encoder(architecture).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def detect_architecture(tensors: dict[str, np.ndarray], source: str) -> str:
  """Returns the encoder whose names differ least from those of `tensors`.

  Raises:
    UserError: they share less than half of the names with every encoder.
  """
  found = {flax_name(name, tensor.ndim) for name, tensor in tensors.items() if not is_left_behind(name)}
  candidates = {architecture: set(expected_shapes(architecture)) for architecture in ENCODERS}
  best = min(candidates, key=lambda architecture: len(candidates[architecture] ^ found))
  if 2 * len(candidates[best] & found) < len(candidates[best]):
    known = ", ".join(name for name in ENCODERS if name != "resnet_tiny")
    raise UserError(f"{source}: its tensors ({', '.join(list(tensors)[:3])}, ...) are of no known encoder; "
                    f"expected one of {known}")
  return best
