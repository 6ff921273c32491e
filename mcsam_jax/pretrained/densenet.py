"""Maps the tensors of torchxrayvision's DenseNet-121 to Flax variables.

Its names are torchvision's, with `classifier` and the thresholds `op_threshs` beside `features.`. Checkpoints of old
versions of torchvision write `norm.1` for `norm1`.
"""

from collections.abc import Iterable
import re

from mcsam_jax.pretrained import torch_names
from mcsam_jax.pretrained.conversion import TensorMapping

IGNORED = ("classifier.", "op_threshs")


def is_densenet(names: Iterable[str]) -> bool:
  """Returns whether these are the names of a DenseNet."""
  return any("denseblock1.denselayer1." in name for name in names)


def is_ignored(name: str) -> bool:
  """Returns whether the image encoder doesn't need a tensor."""
  return name.startswith(IGNORED) or torch_names.is_ignored(name)


def to_flax_name(name: str, ndim: int) -> str:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions."""
  name = re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", name.removeprefix("features."))
  return torch_names.to_flax_name(re.sub(r"(denseblock\d+)\.(denselayer\d+)", r"\1_\2", name), ndim)


MAPPING = TensorMapping(to_flax_name, is_ignored)
