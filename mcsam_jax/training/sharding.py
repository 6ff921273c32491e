"""One mesh for everything: which device holds which part of the batch and of the parameters."""

import collections
from collections.abc import Iterable, Iterator

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))   # axis 0 of every batch is split over both


def make_mesh(config: ConfigDict) -> Mesh:
  """Returns the mesh [data, fsdp] over all devices of all hosts; a size of -1 takes what is left.

  Raises:
    UserError: the sizes don't multiply to the number of devices, or don't divide the batch.
  """
  sizes, devices = [config.mesh.data, config.mesh.fsdp], jax.device_count()
  if -1 in sizes:
    given = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = devices // given if given else 0
  if np.prod(sizes) != devices or min(sizes) < 1:
    raise UserError(f"mesh.data={config.mesh.data}, mesh.fsdp={config.mesh.fsdp}: there are {devices} devices; "
                    "the product of both must be that, -1 takes what is left")
  for field, size in (("train.batch_size", config.train.batch_size), ("decode.batch_size", config.decode.batch_size)):
    if size % devices:
      raise UserError(f"{field}={size} can't be split over {devices} devices: make it a multiple")
  return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state):
  """Returns a sharding for each array of an abstract state: its longest axis over `fsdp` where that divides it."""
  def place(leaf):
    axes = [None] * leaf.ndim
    divisible = [axis for axis, size in enumerate(leaf.shape) if size % mesh.shape["fsdp"] == 0]
    if divisible and mesh.shape["fsdp"] > 1:
      axes[max(divisible, key=lambda axis: leaf.shape[axis])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes))
  return jax.tree.map(place, state)


def host_rows(batch_size: int) -> slice:
  """Returns the rows of a global batch that this host reads: an equal, contiguous share."""
  share = batch_size // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def to_global(mesh: Mesh, batch: dict) -> dict:
  """Turns this host's rows (NumPy, [B / hosts, ...]) into global arrays [B, ...] split over the mesh."""
  sharding = NamedSharding(mesh, BATCH)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def on_mesh(mesh: Mesh, batches: Iterable[dict], ahead: int = 2) -> Iterator[dict]:
  """Yields batches of this host's rows as global arrays, the next `ahead` of them already on their way to the devices."""
  waiting = collections.deque()
  for batch in batches:
    waiting.append(to_global(mesh, batch))
    if len(waiting) > ahead:
      yield waiting.popleft()
  yield from waiting
