"""What one run of a compiled program computes and moves on one device, instruction by instruction.

`compiled.cost_analysis()` counts the body of a loop once and the memory inside the chip (VMEM) like HBM. Here a body
counts as often as it runs, and bytes count where they are read from HBM or written to it:

- Floating-point operations are those of products of matrices and convolutions, two a multiplication, without the
  multiplications by padding and by the zeros of dilation. Element-wise work is not counted: another unit does it.
- HBM bytes are what top-level instructions read and write there, once an operand, with the elements that fill up
  tiles. A fused computation that takes a slice of an operand, or updates one in place, counts the slice. A convolution
  that reads an operand again for the next window isn't seen: the figure is a lower bound of the traffic. What a
  fusion hands on of a collective that proceeds beside its work isn't moved; its operand and result count once.
- Of a conditional one branch counts: the cheapest (what a step does that meets no ties in the memory) or, with
  `dearest`, the dearest. A branch with a loop of unknown length is always taken: there a search goes on.
- A loop whose number of turns isn't in the program is named in `unknown_loops`; the caller says how often it turns.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re

from mcsam_jax.precompile.flops import flops_of
from mcsam_jax.precompile.hlo import Array, Computation, HBM, Instruction, parse, Program
from mcsam_jax.precompile.loops import trip_count

# Nothing moves: names, views, and what is counted at the start of its pair or where its body stands.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
         "opt-barrier", "add-dependency", "get-dimension-size", "domain"}
_VIEWS = {"bitcast", "copy", "convert", "reshape", "transpose"}     # of a parameter, inside a fusion
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start"}
_FREE_CALLS = re.compile(r'custom_call_target="(ConcatBitcast|AllocateBuffer)"')


@dataclasses.dataclass
class Cost:
  """An instruction, and what it costs on one device in one run of the program."""
  instruction: Instruction
  stack: list[tuple[str, str]]     # (file, function), the innermost first
  times: int                       # turns of the loops around it
  flops: float = 0                 # from here on all turns together
  hbm_read: float = 0
  hbm_written: float = 0
  cycles: float = 0                # the compiler's estimate

  @property
  def hbm_bytes(self) -> float:
    return self.hbm_read + self.hbm_written


@dataclasses.dataclass
class Costs:
  """Of a whole program."""
  rows: list[Cost]
  unknown_loops: list[str]
  program: Program
  text: str = ""                   # that the program was read from

  flops = property(lambda self: sum(row.flops for row in self.rows))
  hbm_bytes = property(lambda self: sum(row.hbm_bytes for row in self.rows))
  cycles = property(lambda self: sum(row.cycles for row in self.rows))


def analyse(hlo: str | Program, dearest: bool = False, unknown_trips: Sequence[int] = ()) -> Costs:
  """Returns the costs of a program, given as `compiled.as_text()`, on one device.

  Args:
    unknown_trips: turns of the loops of unknown length, in their order, loops inside such loops left out; the others
      turn once.
  """
  program = parse(hlo) if isinstance(hlo, str) else hlo
  unknown = []
  rows = _walk(program, program.entry, 1, dearest, unknown_trips, unknown)
  return Costs(rows, unknown, program, hlo if isinstance(hlo, str) else "")


def _walk(program: Program, computation: Computation, times: int, dearest: bool, unknown_trips: Sequence[int],
          unknown: list[str]) -> list[Cost]:
  """Returns the rows of a computation that runs `times` times, and of those that it runs in turn."""
  walk = functools.partial(_walk, program, dearest=dearest)
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
        inner = program.computations[instruction.attribute(name).removeprefix("%")]
        rows += walk(inner, times * trips, unknown_trips=inner_trips, unknown=inner_unknown)
    elif instruction.opcode == "conditional":
      choices = []
      for name in instruction.branches:
        loops = list(unknown)
        choices.append((walk(program.computations[name], times, unknown_trips=unknown_trips, unknown=loops), loops))
      searching = [choice for choice in choices if len(choice[1]) > len(unknown)]
      weight = lambda choice: (sum(row.hbm_bytes for row in choice[0]), sum(row.flops for row in choice[0]))
      chosen, loops = (max if dearest else min)(searching or choices, key=weight)
      rows += chosen
      unknown[:] = loops
    elif instruction.opcode == "call":
      for name in instruction.called:
        rows += walk(program.computations[name], times, unknown_trips=unknown_trips, unknown=unknown)
    elif not _is_free(instruction):
      rows.append(Cost(instruction, program.stack(instruction.frame), times,
                       times * flops_of(program, computation, instruction),
                       times * hbm_read(program, computation, instruction),
                       times * hbm_written(program, computation, instruction), times * instruction.cycles))
  return rows


def _is_free(instruction: Instruction) -> bool:
  return (instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update"))
          or bool(_FREE_CALLS.search(instruction.attributes)))


def hbm_read(program: Program, computation: Computation, instruction: Instruction) -> int:
  """Returns the bytes that an instruction reads from HBM, once."""
  if instruction.opcode in ("iota", "broadcast") or instruction.opcode.startswith(("recv", "infeed")):
    return 0
  total = 0
  for number, name in enumerate(instruction.operands):
    arrays = computation.instructions[name].arrays
    if len(arrays) != 1:                                    # a tuple: what is behind it counts where it is used
      continue
    array = arrays[0]
    if array.space == HBM:
      total += min(array.padded_bytes, _read_of(program, computation, instruction, number, array.padded_bytes))
  return total


def _read_of(program: Program, computation: Computation, user: Instruction, number: int, whole: int) -> int:
  """Returns how many of the `whole` bytes of operand `number` a user reads."""
  if program.goes_on(user) or (user.opcode == "tuple" and _carries_collective(computation)):
    return 0
  if user.opcode in _SLICES:
    return _bytes(user) if number == 0 else whole
  if user.opcode in ("dynamic-update-slice", "scatter"):
    return 0 if number == 0 else whole                      # written in place
  if user.called and user.opcode in ("fusion", "async-start"):
    inner = program.computations[user.called[0]]
    return _read_inside(program, inner, inner.parameter(number), whole)
  return whole


def _read_inside(program: Program, inner: Computation, value: Instruction, whole: int) -> int:
  total = 0
  for user in inner.users(value.name):
    numbers = [number for number, name in enumerate(user.operands) if name == value.name]
    if user.opcode in _VIEWS and not user.is_root:
      total += _read_inside(program, inner, user, whole)
    else:
      total += sum(_read_of(program, inner, user, number, whole) for number in numbers)
    if total >= whole:
      return whole
  return total


def hbm_written(program: Program, computation: Computation, instruction: Instruction) -> int:
  """Returns the bytes that an instruction writes to HBM, once."""
  if instruction.opcode.startswith(("send", "outfeed")):
    return 0
  total = 0
  for place, array in enumerate(_results(instruction)):
    if array.space == HBM:
      total += min(array.padded_bytes, _written(program, computation, instruction, place, array.padded_bytes))
  return total


def _carries_collective(computation: Computation) -> bool:
  return any(instruction.collective_piece for instruction in computation.instructions.values())


def _written(program: Program, computation: Computation, instruction: Instruction, place: int, whole: int) -> int:
  if program.goes_on(instruction):
    return 0
  if instruction.opcode in ("dynamic-update-slice", "scatter"):
    return _bytes(computation.instructions[instruction.operands[1 if instruction.opcode[0] == "d" else -1]])
  if instruction.opcode == "fusion":
    inner = program.computations[instruction.called[0]]
    root = inner.root
    if root.opcode == "tuple":
      root = inner.instructions[root.operands[place]]
    while root.opcode == "bitcast":
      root = inner.instructions[root.operands[0]]
    if root.opcode == "parameter":
      return 0 if _carries_collective(inner) else whole
    return _written(program, inner, root, 0, whole)
  return whole


def _results(instruction: Instruction) -> tuple[Array, ...]:
  """Returns what an instruction makes, without the operands and flags that an asynchronous start shows too."""
  arrays, count = instruction.arrays, len(instruction.operands)
  if instruction.opcode == "copy-start":                    # (destination, source, a flag)
    return arrays[:1]
  if instruction.opcode.endswith("-start") and len(arrays) >= 2 * count:
    return arrays[count:2 * count]                          # (operands, results, flags)
  return arrays


def _bytes(instruction: Instruction) -> int:
  return sum(array.padded_bytes for array in _results(instruction))


def total_by(costs: Costs, key: Callable[[Cost], str]) -> dict[str, dict[str, float]]:
  """Returns FLOPs, HBM bytes and cycles of each group of rows, the most bytes first."""
  groups = {}
  for row in costs.rows:
    group = groups.setdefault(key(row), {"flops": 0.0, "hbm_bytes": 0.0, "cycles": 0.0, "instructions": 0})
    group["flops"] += row.flops
    group["hbm_bytes"] += row.hbm_bytes
    group["cycles"] += row.cycles
    group["instructions"] += 1
  return dict(sorted(groups.items(), key=lambda item: -item[1]["hbm_bytes"]))
