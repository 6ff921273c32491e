"""The device mesh of a run, and how batches are placed on it.

The rules in `mcsam_jax/partitioning.py` decide which array axes are split over which mesh axes.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, cast

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.partitioning import BATCH, MESH_AXES, param_specs


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
  """Returns the mesh [data, fsdp, tensor] over `devices`, by default all devices of all hosts.

  Devices that are connected by the data-center network (several TPU slices) differ only in `data`: collectives over
  `fsdp` and `tensor` stay within a slice.

  Raises:
    UserError: the product of the sizes isn't the number of devices, or the sizes don't divide the heads or slices.
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
    raise UserError(f"mesh.data={sizes[0]} must be a multiple of the {num_slices} slices, because mesh.fsdp and "
                    "mesh.tensor stay within a slice")
  grid = mesh_utils.create_hybrid_device_mesh((sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1), devices,
                                              allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=types)


def mesh_shape(config: ConfigDict, num_devices: int) -> tuple[int, int, int]:
  """Returns the sizes of the axes data, fsdp and tensor; an axis that is -1 in the config takes the remaining devices.

  Raises:
    UserError: the product of the sizes isn't the number of devices.
  """
  sizes = [config.mesh[axis] for axis in MESH_AXES]
  if -1 in sizes:
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = num_devices // known if known else 0
  if np.prod(sizes) != num_devices or min(sizes) < 1:
    fields = ", ".join(f"mesh.{axis}={config.mesh[axis]}" for axis in MESH_AXES)
    raise UserError(f"{fields}: the product must be the number of devices, {num_devices}; one field may be -1, which "
                    "takes the remaining devices")
  data, fsdp, tensor = sizes
  return data, fsdp, tensor


def check_train_batch_size(config: ConfigDict, sizes: Mapping[str, int]) -> None:
  """Raises UserError unless every microbatch can be split evenly over a mesh with these axis sizes."""
  devices, microbatches = sizes["data"] * sizes["fsdp"], config.train.grad_accum_steps
  if config.train.batch_size % (devices * microbatches):
    accumulation = f" and {microbatches} microbatches (train.grad_accum_steps)" if microbatches > 1 else ""
    raise UserError(f"train.batch_size={config.train.batch_size} can't be split over {devices} devices{accumulation}: "
                    f"make it a multiple of {devices * microbatches}")


def decode_batch_size(config: ConfigDict, sizes: Mapping[str, int]) -> int:
  """Returns `decode.batch_size`, rounded up to a multiple of the devices that split a batch."""
  devices = sizes["data"] * sizes["fsdp"]
  return -(-config.decode.batch_size // devices) * devices


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds in full."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [B, ...] that splits the studies."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def state_shardings(mesh: Mesh, state):
  """Returns a sharding for each array of an abstract training state, including its optimizer state."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(state, dict(mesh.shape)),
                      is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a global batch that this host's devices hold, and that it therefore has to read.

  Hosts that share rows (where the axis `tensor` spans hosts) each read them.

  Returns:
    Row indices in ascending order, int64.
  """
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices if index is not None]))


def shard_batch(mesh: Mesh, batch: dict) -> dict:
  """Returns global arrays [B, ...], split over the mesh, from this host's NumPy rows in the order of `local_rows`."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def shard_batches(mesh: Mesh, batches: Iterable[dict], prefetch: int = 2) -> Iterator[dict]:
  """Yields batches of this host's rows as global arrays, while the next `prefetch` are being copied to the devices."""
  queue = collections.deque()
  for batch in batches:
    queue.append(shard_batch(mesh, batch))
    if len(queue) > prefetch:
      yield queue.popleft()
  yield from queue


def shard_batches_in_thread(mesh: Mesh, batches: Iterable[dict], prefetch: int = 2) -> Iterator[dict]:
  """Yields what `shard_batches` yields; a thread takes the batches and copies them.

  The consumer waits for no copy, even where the devices are the CPU's own busy cores. `batches` must not run anything
  on the devices, because its turn among the consumer's programs isn't fixed. An exception of `batches` is raised when
  the batch is due that it prevented.
  """
  iterator, end = iter(batches), object()

  def shard_next() -> Any:
    batch = next(iterator, end)
    return end if batch is end else shard_batch(mesh, cast(dict, batch))

  pool = futures.ThreadPoolExecutor(1, "shard_batches")
  try:
    pending = collections.deque(pool.submit(shard_next) for _ in range(prefetch + 1))
    while (batch := pending.popleft().result()) is not end:
      pending.append(pool.submit(shard_next))
      yield batch
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
