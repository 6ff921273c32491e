"""Which axis of an array lies over which axis of the mesh: the rules for all parameters, and for what a step computes.

The mesh has three axes. The batch is split over `data` and `fsdp`. Parameters, and the optimizer's state with them, are
split over `fsdp` to save memory, and gathered when a step begins; over `tensor` each device holds some heads of every
attention and of the memory, some hidden units of every feed-forward layer and some words of the vocabulary, and works
with these alone.

Nothing here changes a result: one device is a mesh of 1 x 1 x 1. Code that runs without a mesh (`jax.set_mesh`) may
call everything here too; arrays then stay as they are.
"""

import math
import re

import jax
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")             # of axis 0 of every batch

RULES = {                            # logical axis of a parameter -> axis of the mesh
    "width": "fsdp",
    "channels": "fsdp",
    "slots": "fsdp",
    "heads": "tensor",
    "hidden": "tensor",
    "vocabulary": "tensor",
}

# The logical axes of parameters by the end of their path; the first that fits counts. All others, which are small,
# are whole on every device. States of an optimizer end in the path of their parameter, so they follow it.
LOGICAL_AXES = (
    (r"visual_encoder/.*kernel", (None, None, None, "channels")),
    (r"memory_bank/slots", ("slots", None)),
    (r"(query|key|value)/kernel", ("width", "heads")),
    (r"(query|key|value)/bias", ("heads",)),
    (r"hidden/kernel", ("width", "hidden")),
    (r"hidden/bias", ("hidden",)),
    (r"(feedforward|_head)/output/kernel", ("hidden", "width")),
    (r"output/kernel", ("heads", "width")),
    (r"token_embedding/embedding", ("vocabulary", "width")),
    (r"logits/kernel", ("width", "vocabulary")),
    (r"logits/bias", ("vocabulary",)),
    (r"kernel", (None, "width")),
)


def param_spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
  """Returns how a parameter lies on the mesh.

  Args:
    path: its name, a/b/c.
    sizes: of the mesh's axes; an axis of the parameter that its size doesn't divide is not split.
  """
  for pattern, axes in LOGICAL_AXES:
    if re.search(rf"(^|/){pattern}$", path) and len(axes) == len(shape):
      mesh_axes = [RULES.get(axis) for axis in axes]
      return PartitionSpec(*(axis if axis and sizes[axis] > 1 and size % sizes[axis] == 0 else None
                             for axis, size in zip(mesh_axes, shape)))
  return PartitionSpec()


def param_specs(tree, sizes: dict[str, int]):
  """Returns a `PartitionSpec` for each array of a tree of parameters, gradients or of a training state."""
  def spec(path, leaf):
    return param_spec("/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path), leaf.shape,
                          sizes)
  return jax.tree_util.tree_map_with_path(spec, tree)


def mesh_sizes() -> dict[str, int]:
  """Returns the sizes of the axes of the mesh that the code runs under; {} without one."""
  return dict(jax.sharding.get_abstract_mesh().shape)


def num_batch_shards() -> int:
  """Returns over how many devices a batch is split."""
  return math.prod(mesh_sizes().get(axis, 1) for axis in BATCH)


def gather_params(params):
  """Returns parameters as a step works with them: whole over `fsdp`, still split over `tensor`.

  Gathering all at once, before the step, costs the memory of one copy of the parameters, which the activations of this
  network exceed many times; its gradient is the reduction that leaves each device its own part.
  """
  sizes = mesh_sizes()
  if sizes.get("fsdp", 1) == 1:
    return params
  specs = param_specs(params, sizes | {"fsdp": 1})
  return jax.tree.map(jax.lax.with_sharding_constraint, params, specs)


def shard_params(params):
  """Returns parameters, or gradients, split as a training state holds them."""
  sizes = mesh_sizes()
  if sizes.get("fsdp", 1) == 1 and sizes.get("tensor", 1) == 1:
    return params
  return jax.tree.map(jax.lax.with_sharding_constraint, params, param_specs(params, sizes))


def replicate(tree):
  """Returns arrays whole on every device."""
  whole = PartitionSpec()
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), tree) if mesh_sizes() else tree

