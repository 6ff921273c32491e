"""Maps the tensors of PyTorch image encoders to Flax variables, and detects the architecture of a state dict.

The Flax encoders name their submodules as torchvision and EfficientNet-Lite do, so one rule is enough:
`layer1.0.bn1.running_var` becomes `batch_stats/layer1_0/bn1/var`.
"""

import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import ENCODERS, find_encoder, make_encoder
from mcsam_jax.pretrained.conversion import TensorMapping

ARCHITECTURES = ("resnet50", "resnet101", "efficientnet_lite0", "resnet_tiny")
CLASSIFIER_PREFIXES = ("fc.", "_fc.")             # classifiers, which the encoders don't have


def to_flax_name(torch_name: str, ndim: int) -> str:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions."""
  module, _, leaf = torch_name.rpartition(".")
  collection, leaf = {
      "weight": ("params", "scale" if ndim == 1 else "kernel"),
      "running_mean": ("batch_stats", "mean"),
      "running_var": ("batch_stats", "var"),
  }.get(leaf, ("params", leaf))
  module = "/".join(part.lstrip("_") for part in re.sub(r"\.(\d+)", r"_\1", module).split("."))
  return f"{collection}/{module}/{leaf}"


def is_ignored(torch_name: str) -> bool:
  """Returns whether an encoder doesn't need a tensor: classifiers and batch counters of batch normalization."""
  return torch_name.startswith(CLASSIFIER_PREFIXES) or torch_name.endswith(".num_batches_tracked")


MAPPING = TensorMapping(to_flax_name, is_ignored)


def get_encoder_shapes(architecture: str, image_size: int | None = None) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each variable of an encoder by flat name.

  Args:
    image_size: in pixels; only position embeddings depend on it.
  """
  spec = find_encoder(architecture)
  size = image_size or 4 * spec.stride
  image = jnp.zeros((1, size, size, spec.input_channels))
  variables = jax.eval_shape(make_encoder(architecture).init, jax.random.key(0), image)
  flat: dict = traverse_util.flatten_dict(variables, sep="/")
  return {name: leaf.shape for name, leaf in flat.items()}


def detect_architecture(tensors: dict[str, np.ndarray], source: str) -> str:
  """Returns the encoder, of those with torchvision's or EfficientNet's names, that differs least from `tensors`.

  Args:
    tensors: a state dict.
    source: its file, for errors.

  Raises:
    UserError: less than half of the variables of that encoder are in `tensors`.
  """
  names = {to_flax_name(name, tensor.ndim) for name, tensor in tensors.items() if not is_ignored(name)}
  candidates = {architecture: set(get_encoder_shapes(architecture)) for architecture in ARCHITECTURES}
  best = min(candidates, key=lambda architecture: len(candidates[architecture] ^ names))
  if 2 * len(candidates[best] & names) < len(candidates[best]):
    known = ", ".join(name for name in ENCODERS if name != "resnet_tiny")
    raise UserError(f"{source}: its tensors ({', '.join(list(tensors)[:3])}, ...) don't belong to a known encoder; "
                    f"expected one of {known}")
  return best
