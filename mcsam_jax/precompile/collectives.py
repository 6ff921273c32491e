"""What a compiled program sends between devices, read from its HLO.

Inside a slice (ICI) the compiler writes `all-reduce`, `all-gather` and their like, or hides them in a fusion that runs
beside other work. Between slices (DCN) it writes `send`s that the runtime of multi-slice jobs turns into a collective,
named in an attribute; what goes over ICI before and after is then written out beside it.
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
  """A collective of one run of the program."""
  kind: str
  network: str        # ici | dcn
  bytes: int          # of one device's result (of its operand, for reduce-scatter), once
  times: int          # turns of the loops around it
  members: int        # devices, or slices, that exchange with each other
  cost: Cost          # the instruction that it stands in

  @property
  def wire_bytes(self) -> float:
    """What leaves one device at least, all turns together: a ring's share, which no algorithm goes below."""
    share = (self.members - 1) / self.members if self.members else 0.0
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(self.kind, share)
    return factor * self.bytes * self.times


def transfers(costs: Costs, num_devices: int = 1) -> list[Transfer]:
  """Returns what is sent, in the order of the program.

  Args:
    num_devices: of all slices; the members of a collective that names no groups.
  """
  found = []
  for row in costs.rows:
    for instruction in _inside(costs.program, row.instruction):
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not costs.program.goes_on(instruction):
        found.append(Transfer(kind, "ici", _result_bytes(kind, instruction), row.times,
                              group_size(instruction, num_devices), row))
      elif instruction.opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)[1].lower().replace("_", "-")
        size, members = instruction.arrays[0].bytes, _slices(instruction)
        found.append(Transfer(kind, "dcn", size * members if kind == "all-gather" else size, row.times, members, row))
  return found


def collectives(program: Program) -> dict[str, list[int]]:
  """Returns the bytes of each collective inside slices that a program has, in whichever branch, by kind."""
  found = {}
  for computation in program.computations.values():
    for instruction in computation.instructions.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS and not program.goes_on(instruction):
        found.setdefault(kind, []).append(_result_bytes(kind, instruction))
  return found


def group_size(instruction: Instruction, num_devices: int) -> int:
  """Returns how many devices exchange with each other.

  Groups are written as lists {{0,1},{2,3}}, as a reshaped range [2,2]<=[4], or as axes of a mesh: mesh['a'=2,'b'=2]
  {'a'}, of which only a part may be meant: 'a':(1)2.
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


def _inside(program: Program, instruction: Instruction) -> Iterator[Instruction]:
  yield instruction
  if instruction.opcode in ("fusion", "async-start"):
    for name in instruction.called:
      for part in program.computations[name].instructions.values():
        yield from _inside(program, part)


def _result_bytes(kind: str, instruction: Instruction) -> int:
  arrays = instruction.arrays
  if instruction.opcode.endswith("-start"):
    count = len(instruction.operands)                    # all-gather-start: (operands, results); others: results
    if len(arrays) >= 2 * count:
      arrays = arrays[count:2 * count]
  size = sum(array.bytes for array in arrays)
  return size * group_size(instruction, 1) if kind == "reduce-scatter" else size


def _slices(instruction: Instruction) -> int:
  target = re.search(r'_xla_megascale_target="\{([0-9,]+)\}', instruction.attributes)
  return target[1].count(",") + 1 if target else 2
