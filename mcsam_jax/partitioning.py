"""Sharding rules: which axis of an array is split over which axis of the mesh.

The mesh has three axes. The batch is split over `data` and `fsdp`. Parameters and the optimizer's state are split over
`fsdp` to save memory, and gathered at the start of a step. Over `tensor`, each device holds some heads of every
attention and of the memory, some hidden units of every feed-forward layer and some tokens of the vocabulary, and
computes with these alone.

Sharding doesn't change results; one device is a mesh of 1 x 1 x 1. All functions here may also be called without a mesh
(`jax.set_mesh`); arrays are then returned unchanged.
"""

import math
import re

import jax
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")             # mesh axes over which axis 0 of every batch is split

RULES = {                            # logical axis of a parameter -> mesh axis
    "width": "fsdp",
    "channels": "fsdp",
    "slots": "fsdp",
    "heads": "tensor",
    "hidden": "tensor",
    "vocabulary": "tensor",
}

# Logical axes of parameters by the end of their path; the first match counts. All others are small and replicated on
# every device. The image encoder is not split over `tensor`, because its architecture may be anyone's. Optimizer states
# end in the path of their parameter, so they are sharded like it.
LOGICAL_AXES = (
    (r"visual_encoder/.*kernel", (None, None, None, "channels")),
    (r"visual_encoder/.*kernel", (None, None, "channels")),
    (r"visual_encoder/.*kernel", (None, "channels")),
    (r"visual_encoder/.*", (None,)),
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
  """Returns the partition spec of a parameter.

  Args:
    path: its name, a/b/c.
    shape: of the parameter; an axis that isn't divisible by the size of its mesh axis is not split.
    sizes: of the mesh axes, by name.
  """
  for pattern, axes in LOGICAL_AXES:
    if re.search(rf"(^|/){pattern}$", path) and len(axes) == len(shape):
      mesh_axes = [RULES[axis] if axis else None for axis in axes]
      return PartitionSpec(*(axis if axis and sizes[axis] > 1 and size % sizes[axis] == 0 else None
                             for axis, size in zip(mesh_axes, shape)))
  return PartitionSpec()


def param_specs(tree, sizes: dict[str, int]):
  """Returns a `PartitionSpec` for each array of a tree of parameters, gradients or of a train state."""
  def spec(path, leaf):
    name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
    return param_spec(name, leaf.shape, sizes)
  return jax.tree_util.tree_map_with_path(spec, tree)


def mesh_axis_sizes() -> dict[str, int]:
  """Returns the sizes of the axes of the ambient mesh; {} without one."""
  return dict(jax.sharding.get_abstract_mesh().shape)


def num_batch_shards() -> int:
  """Returns the number of shards into which a batch is split."""
  return math.prod(mesh_axis_sizes().get(axis, 1) for axis in BATCH)


def gather_params(params):
  """Returns parameters gathered over `fsdp` and still split over `tensor`, as a step uses them.

  Gathering all at once, before the step, costs the memory of one copy of the parameters, which is small compared with
  the activations of this network. The gradient of gathering is a reduction that leaves each device its own shard.
  """
  sizes = mesh_axis_sizes()
  if sizes.get("fsdp", 1) == 1:
    return params
  specs = param_specs(params, sizes | {"fsdp": 1})
  return jax.tree.map(jax.lax.with_sharding_constraint, params, specs)


def shard_params(params):
  """Returns parameters, or gradients, split as in a train state."""
  sizes = mesh_axis_sizes()
  if sizes.get("fsdp", 1) == 1 and sizes.get("tensor", 1) == 1:
    return params
  return jax.tree.map(jax.lax.with_sharding_constraint, params, param_specs(params, sizes))


def shard_batch(array: jax.Array) -> jax.Array:
  """Returns an array [B, ...] split over the devices that split the batch."""
  if not mesh_axis_sizes():
    return array
  return jax.lax.with_sharding_constraint(array, PartitionSpec(BATCH))


def replicate(tree):
  """Returns arrays replicated on every device of the mesh."""
  if not mesh_axis_sizes():
    return tree
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)
