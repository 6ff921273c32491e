"""The mesh over all devices of all hosts, and the way of a batch onto it.

What lies where is decided by the rules of `mcsam_jax/partitioning.py`.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.partitioning import BATCH, MESH_AXES, param_specs


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh [data, fsdp, tensor] over devices, by default all of all hosts.

  Devices that the data-centre network joins (several TPU slices) differ in `data` alone: what is gathered or reduced
  over `fsdp` and `tensor` stays inside a slice.

  Raises:
    UserError: the sizes don't multiply to the number of devices, or don't divide the heads or the slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = mesh_shape(config, len(devices))
  for field, heads in (("model.num_heads", config.model.num_heads), ("memory.num_heads", config.memory.num_heads)):
    if heads % sizes[2]:
      raise UserError(f"mesh.tensor={sizes[2]} must divide {field}={heads}")
  num_slices = len({getattr(device, "slice_index", 0) for device in devices})
  types = (AxisType.Auto,) * len(MESH_AXES)
  if num_slices == 1:
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=types)
  if sizes[0] % num_slices:
    raise UserError(f"mesh.data={sizes[0]} must be a multiple of the {num_slices} slices: fsdp and tensor stay inside one")
  grid = mesh_utils.create_hybrid_device_mesh((sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1), devices,
                                              allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=types)


def mesh_shape(config: ConfigDict, num_devices: int) -> tuple[int, int, int]:
  """Returns the sizes of the axes data, fsdp, tensor; one that is -1 in the config takes what is left.

  Raises:
    UserError: they don't multiply to the number of devices.
  """
  sizes = [config.mesh[axis] for axis in MESH_AXES]
  if -1 in sizes:
    given = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = num_devices // given if given else 0
  if np.prod(sizes) != num_devices or min(sizes) < 1:
    asked = ", ".join(f"mesh.{axis}={config.mesh[axis]}" for axis in MESH_AXES)
    raise UserError(f"{asked}: there are {num_devices} devices; the product must be that, one -1 takes what is left")
  return tuple(sizes)


def check_train_batch_size(config: ConfigDict, sizes: Mapping[str, int]) -> None:
  """Raises UserError unless a training batch can be split evenly over a mesh of these sizes, in each of its turns."""
  rows, turns = sizes["data"] * sizes["fsdp"], config.train.grad_accum_steps
  if config.train.batch_size % (rows * turns):
    named = f" and {turns} turns (train.grad_accum_steps)" if turns > 1 else ""
    raise UserError(f"train.batch_size={config.train.batch_size} can't be split over {rows} devices{named}: make it a "
                    f"multiple of {rows * turns}")


def decode_batch_size(config: ConfigDict, sizes: Mapping[str, int]) -> int:
  """Returns how many studies are written at once: `decode.batch_size`, or a few more so that all devices have as many."""
  rows = sizes["data"] * sizes["fsdp"]
  return -(-config.decode.batch_size // rows) * rows


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [B, ...] by studies."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def state_shardings(mesh: Mesh, state):
  """Returns a sharding for each array of an abstract training state, its optimizer's included."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(state, dict(mesh.shape)),
                      is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a global batch that this host feeds, int64, rising: those that its devices hold.

  Where hosts share a row (an axis `tensor` that spans them) each of them reads it.
  """
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def shard_batch(mesh: Mesh, batch: dict) -> dict:
  """Turns this host's rows (NumPy, as `local_rows` says) into global arrays [B, ...] split over the mesh."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def shard_batches(mesh: Mesh, batches: Iterable[dict], prefetch: int = 2) -> Iterator[dict]:
  """Yields batches of this host's rows as global arrays, the next `prefetch` of them already on their way to the devices."""
  waiting = collections.deque()
  for batch in batches:
    waiting.append(shard_batch(mesh, batch))
    if len(waiting) > prefetch:
      yield waiting.popleft()
  yield from waiting
