"""Collectives of a compiled program, read from its HLO.

Inside a slice (ICI) the compiler emits `all-reduce`, `all-gather` and similar instructions, or places them in a fusion
that overlaps them with other work. Between slices (DCN) it emits `send` instructions, which the multi-slice runtime
turns into the collective that an attribute names; the ICI part of such a collective is emitted separately.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

from mcsam_jax.precompile.cost import Cost, Costs
from mcsam_jax.precompile.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "ragged-all-to-all",
         "reduce-scatter")


@dataclasses.dataclass
class Transfer:
  """One collective of a program, with its cost in one execution."""
  kind: str
  network: str        # ici | dcn
  bytes: int          # size of one device's result (its operand for reduce-scatter), per execution
  times: int          # executions: product of the trip counts of the enclosing loops
  members: int        # devices (ICI) or slices (DCN) per group
  cost: Cost          # the top-level instruction that contains it

  @property
  def wire_bytes(self) -> float:
    """Lower bound of the bytes that one device sends in all executions: the amount of a ring algorithm."""
    share = (self.members - 1) / self.members if self.members else 0.0
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(self.kind, share)
    return factor * self.bytes * self.times


def find_transfers(costs: Costs, num_devices: int = 1) -> list[Transfer]:
  """Returns all collectives in program order.

  Args:
    num_devices: devices of all slices; the group size of a collective that names no groups.
  """
  transfers = []
  for row in costs.rows:
    for instruction in _walk_fused(costs.program, row.instruction):
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not costs.program.continues_collective(instruction):
        transfers.append(Transfer(kind, "ici", _result_bytes(kind, instruction), row.times,
                                  get_group_size(instruction, num_devices), row))
      elif instruction.opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
        kind = _get_slice_transfer_kind(instruction)
        size, members = instruction.arrays[0].bytes, _count_slices(instruction)
        size = size * members if kind == "all-gather" else size
        transfers.append(Transfer(kind, "dcn", size, row.times, members, row))
  return transfers


def _get_slice_transfer_kind(send: Instruction) -> str:
  """Returns the kind of the transfer between slices that a `send` belongs to, such as all-reduce."""
  found = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
  if found is None:
    raise ValueError(f"send {send.name} has no readable transfer type in the HLO")
  return found[1].lower().replace("_", "-")


def list_collective_bytes(program: Program) -> dict[str, list[int]]:
  """Returns by kind the bytes of every ICI collective in the program, in all branches."""
  sizes = {}
  for computation in program.computations.values():
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not program.continues_collective(instruction):
        sizes.setdefault(kind, []).append(_result_bytes(kind, instruction))
  return sizes


def get_group_size(instruction: Instruction, num_devices: int) -> int:
  """Returns the number of devices in each group of a collective.

  HLO writes groups as lists {{0,1},{2,3}}, as a reshaped range [2,2]<=[4], or as axes of a mesh
  mesh['a'=2,'b'=2] {'a'}; 'a':(1)2 is a sub-axis of size 2.
  """
  text = instruction.attributes
  if instruction.opcode.startswith("collective-permute"):
    return 2
  lists = re.search(r"replica_groups=\{\{([0-9,]*)\}", text)
  if lists:
    return lists[1].count(",") + 1
  reshaped = re.search(r"replica_groups=\[([0-9,]+)\]<=", text)
  if reshaped:
    return int(reshaped[1].split(",")[-1])
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
  if mesh:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in axes)
  return num_devices


def _walk_fused(program: Program, instruction: Instruction) -> Iterator[Instruction]:
  """Yields an instruction and, for fusions and asynchronous calls, all instructions inside it."""
  yield instruction
  if instruction.opcode in ("fusion", "async-start"):
    for name in instruction.called:
      for part in program.computations[name].instructions.values():
        yield from _walk_fused(program, part)


def _result_bytes(kind: str, instruction: Instruction) -> int:
  arrays = instruction.arrays
  if instruction.opcode.endswith("-start"):
    count = len(instruction.operands)
    if len(arrays) >= 2 * count:                         # all-gather-start returns its operands, then the results
      arrays = arrays[count:2 * count]
  size = sum(array.bytes for array in arrays)
  return size * get_group_size(instruction, 1) if kind == "reduce-scatter" else size


def _count_slices(instruction: Instruction) -> int:
  target = re.search(r'_xla_megascale_target="\{([0-9,]+)\}', instruction.attributes)
  return target[1].count(",") + 1 if target else 2
