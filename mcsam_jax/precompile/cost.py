"""FLOPs and HBM traffic of a compiled program on one device, per instruction.

`compiled.cost_analysis()` counts a loop body once, and counts VMEM like HBM. Here a loop body counts as often as it
runs, and only bytes that are read from HBM or written to it count:

- FLOPs are those of matrix products and convolutions, two per multiply-add, without multiplications by padding or by
  the zeros of dilation. Element-wise operations are not counted, because they run on another unit.
- HBM bytes are what top-level instructions read and write, once per operand, including the padding of tiles. A fusion
  that slices an operand, or updates it in index, counts only the slice. Repeated reads of an operand by a convolution
  aren't visible in HLO, so the figure is a lower bound. Buffers of an overlapped collective that a fusion only passes
  on aren't counted again; its operand and result count once.
- One branch of each conditional counts: the cheapest (the branch of a step without ties in the memory scores), or with
  `most_expensive` the most expensive. A branch that contains a loop of unknown length is always taken, because that is
  the branch in which a search continues.
- Loops whose trip count isn't in the program are listed in `unknown_loops`; the caller supplies their trip counts.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re

from mcsam_jax.precompile.flops import count_flops
from mcsam_jax.precompile.hlo import Array, Computation, HBM, Instruction, parse, Program
from mcsam_jax.precompile.loops import trip_count

# Instructions that move no data (names and views).
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
         "opt-barrier", "add-dependency", "get-dimension-size", "domain"}
_VIEWS = {"bitcast", "copy", "convert", "reshape", "transpose"}     # views of a parameter inside a fusion
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start"}
_FREE_CALLS = re.compile(r'custom_call_target="(ConcatBitcast|AllocateBuffer)"')


@dataclasses.dataclass
class Cost:
  """Cost of one instruction on one device in one run of the program."""
  instruction: Instruction
  stack: list[tuple[str, str]]     # (file, function), innermost first
  times: int                       # executions: product of the trip counts of the enclosing loops
  flops: float = 0                 # this and the following: total over all executions
  hbm_read: float = 0
  hbm_written: float = 0
  cycles: float = 0                # the compiler's estimate

  @property
  def hbm_bytes(self) -> float:
    return self.hbm_read + self.hbm_written


@dataclasses.dataclass
class Costs:
  """Costs of a whole program on one device."""
  rows: list[Cost]
  unknown_loops: list[str]
  program: Program
  text: str = ""                   # HLO that the program was parsed from

  flops = property(lambda self: sum(row.flops for row in self.rows))
  hbm_bytes = property(lambda self: sum(row.hbm_bytes for row in self.rows))
  cycles = property(lambda self: sum(row.cycles for row in self.rows))

  @functools.cached_property
  def computation_of(self) -> dict[str, Computation]:
    """The computation that contains each instruction, by name of the instruction."""
    return {name: computation for computation in self.program.computations.values()
            for name in computation.instructions}


def analyze_costs(hlo: str | Program, most_expensive: bool = False, unknown_trips: Sequence[int] = ()) -> Costs:
  """Returns the costs of a program on one device.

  Args:
    hlo: `compiled.as_text()`, or the parsed program.
    most_expensive: count the most expensive branch of each conditional instead of the cheapest.
    unknown_trips: trip counts of the loops of unknown length, in program order, without loops nested in such loops;
      a loop without an entry counts once.
  """
  program = parse(hlo) if isinstance(hlo, str) else hlo
  unknown = []
  rows = _walk(program, program.entry, 1, most_expensive, unknown_trips, unknown)
  return Costs(rows, unknown, program, hlo if isinstance(hlo, str) else "")


def _walk(program: Program, computation: Computation, times: int, most_expensive: bool, unknown_trips: Sequence[int],
          unknown: list[str]) -> list[Cost]:
  """Returns the rows of a computation that runs `times` times, and of all computations that it calls."""
  walk = functools.partial(_walk, program, most_expensive=most_expensive)
  rows = []
  for instruction in computation.instructions.values():
    if instruction.opcode == "while":
      trips, inner_unknown = trip_count(program, computation, instruction), unknown
      inner_trips = unknown_trips
      if trips is None:
        trips = unknown_trips[len(unknown)] if len(unknown) < len(unknown_trips) else 1
        unknown.append(instruction.name)
        inner_trips, inner_unknown = (), []
      for name in ("condition", "body"):
        inner = program.computations[instruction.require_attribute(name).removeprefix("%")]
        rows += walk(inner, times * trips, unknown_trips=inner_trips, unknown=inner_unknown)
    elif instruction.opcode == "conditional":
      choices = []
      for name in instruction.branches:
        loops = list(unknown)
        choices.append((walk(program.computations[name], times, unknown_trips=unknown_trips, unknown=loops), loops))
      with_unknown_loops = [choice for choice in choices if len(choice[1]) > len(unknown)]
      get_cost = lambda choice: (sum(row.hbm_bytes for row in choice[0]), sum(row.flops for row in choice[0]))
      chosen, loops = (max if most_expensive else min)(with_unknown_loops or choices, key=get_cost)
      rows += chosen
      unknown[:] = loops
    elif instruction.opcode == "call":
      for name in instruction.called:
        rows += walk(program.computations[name], times, unknown_trips=unknown_trips, unknown=unknown)
    elif not _is_free(instruction):
      rows.append(Cost(instruction, program.stack(instruction.frame), times,
                       times * count_flops(program, computation, instruction),
                       times * count_hbm_read(program, computation, instruction),
                       times * count_hbm_written(program, computation, instruction), times * instruction.cycles))
  return rows


def _is_free(instruction: Instruction) -> bool:
  return (instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update"))
          or bool(_FREE_CALLS.search(instruction.attributes)))


def count_hbm_read(program: Program, computation: Computation, instruction: Instruction) -> int:
  """Returns the bytes that one execution of an instruction reads from HBM."""
  if instruction.opcode in ("iota", "broadcast") or instruction.opcode.startswith(("recv", "infeed")):
    return 0
  total = 0
  for number, name in enumerate(instruction.operands):
    arrays = computation.instructions[name].arrays
    if len(arrays) != 1:                                    # elements of a tuple count where they are used
      continue
    array = arrays[0]
    if array.space == HBM:
      total += min(array.padded_bytes, _count_read(program, computation, instruction, number, array.padded_bytes))
  return total


def _count_read(program: Program, computation: Computation, user: Instruction, number: int, num_bytes: int) -> int:
  """Returns how many of the `num_bytes` bytes of operand `number` a user reads."""
  if program.continues_collective(user) or (user.opcode == "tuple" and _carries_collective(computation)):
    return 0
  if user.opcode in _SLICES:
    return _sum_bytes(user) if number == 0 else num_bytes
  if user.opcode in ("dynamic-update-slice", "scatter"):
    return 0 if number == 0 else num_bytes                  # written in place
  if user.called and user.opcode in ("fusion", "async-start"):
    inner = program.computations[user.called[0]]
    return _count_read_in_fusion(program, inner, inner.parameter(number), num_bytes)
  return num_bytes


def _count_read_in_fusion(program: Program, inner: Computation, value: Instruction, num_bytes: int) -> int:
  """Returns how many of the `num_bytes` bytes of `value` the instructions of a fused computation read."""
  total = 0
  for user in inner.users(value.name):
    numbers = [number for number, name in enumerate(user.operands) if name == value.name]
    if user.opcode in _VIEWS and not user.is_root:
      total += _count_read_in_fusion(program, inner, user, num_bytes)
    else:
      total += sum(_count_read(program, inner, user, number, num_bytes) for number in numbers)
    if total >= num_bytes:
      return num_bytes
  return total


def count_hbm_written(program: Program, computation: Computation, instruction: Instruction) -> int:
  """Returns the bytes that one execution of an instruction writes to HBM."""
  if instruction.opcode.startswith(("send", "outfeed")):
    return 0
  total = 0
  for index, array in enumerate(_get_results(instruction)):
    if array.space == HBM:
      total += min(array.padded_bytes, _count_written(program, computation, instruction, index, array.padded_bytes))
  return total


def _carries_collective(computation: Computation) -> bool:
  return any(instruction.collective_piece for instruction in computation.instructions.values())


def _count_written(program: Program, computation: Computation, instruction: Instruction, index: int,
                   num_bytes: int) -> int:
  """Returns how many of the `num_bytes` bytes of result number `index` an instruction writes."""
  if program.continues_collective(instruction):
    return 0
  if instruction.opcode in ("dynamic-update-slice", "scatter"):
    return _sum_bytes(computation.instructions[instruction.operands[1 if instruction.opcode[0] == "d" else -1]])
  if instruction.opcode == "fusion":
    inner = program.computations[instruction.called[0]]
    root = inner.root
    if root.opcode == "tuple":
      root = inner.instructions[root.operands[index]]
    while root.opcode == "bitcast":
      root = inner.instructions[root.operands[0]]
    if root.opcode == "parameter":
      return 0 if _carries_collective(inner) else num_bytes
    return _count_written(program, inner, root, 0, num_bytes)
  return num_bytes


def _get_results(instruction: Instruction) -> tuple[Array, ...]:
  """Returns the result arrays, without the operands and flags that asynchronous starts also return."""
  arrays, count = instruction.arrays, len(instruction.operands)
  if instruction.opcode == "copy-start":                    # (destination, source, a flag)
    return arrays[:1]
  if instruction.opcode.endswith("-start") and len(arrays) >= 2 * count:
    return arrays[count:2 * count]                          # (operands, results, flags)
  return arrays


def _sum_bytes(instruction: Instruction) -> int:
  return sum(array.padded_bytes for array in _get_results(instruction))


def sum_by(costs: Costs, key: Callable[[Cost], str]) -> dict[str, dict[str, float]]:
  """Returns FLOPs, HBM bytes and cycles per group of rows, sorted by HBM bytes in descending order."""
  groups = {}
  for row in costs.rows:
    group = groups.setdefault(key(row), {"flops": 0.0, "hbm_bytes": 0.0, "cycles": 0.0, "instructions": 0})
    group["flops"] += row.flops
    group["hbm_bytes"] += row.hbm_bytes
    group["cycles"] += row.cycles
    group["instructions"] += 1
  return dict(sorted(groups.items(), key=lambda item: -item[1]["hbm_bytes"]))
