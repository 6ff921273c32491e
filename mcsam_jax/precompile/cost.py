"""What one run of a compiled program computes and moves on one device, instruction by instruction.

`compiled.cost_analysis()` counts the body of a loop once and the memory inside the chip (VMEM) like HBM. Here a body
counts as often as it runs, and bytes count where they are read from HBM or written to it:

- Floating-point operations are those of products of matrices and convolutions, two a multiplication, without the
  multiplications by padding and by the zeros of dilation. Element-wise work is not counted: another unit does it.
- HBM bytes are what top-level instructions read and write there, once an operand, with the elements that fill up
  tiles. A fused computation that takes a slice of an operand, or updates one in place, counts the slice. A convolution
  that reads an operand again for the next window isn't seen: the figure is a lower bound of the traffic.
- Of a conditional one branch counts: the cheapest (what a step does that logs nothing and meets no ties) or, with
  `dearest`, the dearest. A branch with a loop of unknown length is always taken: there a search goes on.
- A loop whose number of turns isn't in the program is named in `unknown_loops`; the caller says how often it turns.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import re

from mcsam_jax.precompile.hlo import HBM, Array, Computation, Instruction, Program, parse

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


# Loops.


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
  """Returns how often a loop's body runs: as the compiler notes it, or read from a counter's start, step and bound."""
  known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
  if known:
    return int(known[1])
  condition = program.computations[loop.attribute("condition").removeprefix("%")]
  body = program.computations[loop.attribute("body").removeprefix("%")]
  test = _behind_copies(condition, condition.root)
  while test.opcode == "fusion":
    condition, test = _into_fusion(program, condition, test)
  if test.opcode != "compare":
    return None
  counter, bound = (_behind_copies(condition, condition.instructions[name]) for name in test.operands)
  direction = test.attribute("direction")
  if counter.opcode == "constant":
    counter, bound, direction = bound, counter, {"GT": "LT", "GE": "LE"}.get(direction)
  if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or direction not in ("LT", "LE"):
    return None
  place = int(counter.attribute("index"))
  start = _element(computation, loop.operands[0], place)
  after = _element(body, body.root.name, place)
  if start is None or after is None or start.opcode != "constant" or after.opcode != "add":
    return None
  steps = [_behind_copies(body, body.instructions[name]) for name in after.operands]
  step = next((found for found in steps if found.opcode == "constant"), None)
  if step is None or not any(found.opcode == "get-tuple-element" and found.attribute("index") == str(place)
                             for found in steps) or int(step.inside) < 1:
    return None
  span = int(bound.inside) - int(start.inside) + (direction == "LE")
  return max(0, -(-span // int(step.inside)))


def _behind_copies(computation: Computation, instruction: Instruction) -> Instruction:
  while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    instruction = computation.instructions[instruction.operands[0]]
  return instruction


def _element(computation: Computation, name: str, place: int) -> Instruction | None:
  made = computation.instructions[name]
  return _behind_copies(computation, computation.instructions[made.operands[place]]) if made.opcode == "tuple" else None


def _into_fusion(program: Program, outer: Computation, fusion: Instruction) -> tuple[Computation, Instruction]:
  """Returns a computation that reads like `outer` with the fused computation written out, and its root."""
  inner = program.computations[fusion.called[0]]
  joined = dict(outer.instructions)
  for instruction in inner.instructions.values():
    if instruction.opcode == "parameter":
      source = outer.instructions[fusion.operands[int(instruction.inside)]]
      instruction = dataclasses.replace(instruction, opcode="copy", operands=(source.name,))
    joined[instruction.name] = instruction
  return Computation(inner.name, joined), _behind_copies(Computation(inner.name, joined), joined[inner.root.name])


# Operations.


def flops_of(program: Program, computation: Computation, instruction: Instruction) -> float:
  """Returns the operations of products of matrices and convolutions in an instruction, once."""
  if instruction.opcode == "dot":
    left = computation.instructions[instruction.operands[0]].arrays[0]
    contracted = [int(axis) for axis in (instruction.attribute("lhs_contracting_dims") or "").split(",") if axis]
    return 2.0 * math.prod(instruction.arrays[0].axes) * math.prod(left.axes[axis] for axis in contracted)
  if instruction.opcode == "convolution":
    return _convolution(computation, instruction)
  if instruction.opcode == "custom-call":       # a hand-written kernel says itself what it does
    stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    return float(stated[1]) if stated else 0.0
  if instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
    return sum(flops_of(program, inner, part) for name in instruction.called
               for inner in [program.computations[name]] for part in inner.instructions.values())
  return 0.0


def _convolution(computation: Computation, instruction: Instruction) -> float:
  left, kernel = (computation.instructions[name].arrays[0] for name in instruction.operands[:2])
  result = instruction.arrays[0]
  of_left, of_kernel, of_result = re.match(r"([^_]*)_([^_]*)->(.*)", instruction.attribute("dim_labels")).groups()
  window = dict(part.split("=", 1) for part in (instruction.attribute("window") or "").split())
  groups = int(instruction.attribute("batch_group_count") or 1)
  products = (left.axes[of_left.index("b")] // groups * result.axes[of_result.index("f")]
              * kernel.axes[of_kernel.index("i")])
  spatial = sorted(label for label in of_result if label.isdigit())
  setting = lambda name, default: window.get(name, "x".join([default] * len(spatial))).split("x")
  fields = zip(spatial, setting("size", "1"), setting("stride", "1"), setting("pad", "0_0"), setting("lhs_dilate", "1"),
               setting("rhs_dilate", "1"))
  for label, size, stride, pad, left_dilation, kernel_dilation in fields:
    products *= _taps(left.axes[of_left.index(label)], result.axes[of_result.index(label)], int(size), int(stride),
                      int(pad.split("_")[0]), int(left_dilation), int(kernel_dilation))
  return 2.0 * products


@functools.lru_cache(maxsize=4096)
def _taps(length: int, outputs: int, size: int, stride: int, low: int, left_dilation: int, kernel_dilation: int) -> int:
  """Returns how many pairs of an output and a kernel position of one axis meet an element, not padding or a gap."""
  end, count = (length - 1) * left_dilation, 0
  for tap in range(size):
    first = tap * kernel_dilation - low                  # where the first output's tap falls in the dilated input
    if left_dilation == 1:
      begin = max(0, -(-(-first) // stride)) if first < 0 else 0
      last = min(outputs - 1, (end - first) // stride)
      count += max(0, last - begin + 1)
    else:
      places = (first + stride * output for output in range(outputs))
      count += sum(0 <= place <= end and place % left_dilation == 0 for place in places)
  return count


# Bytes.


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


def _written(program: Program, computation: Computation, instruction: Instruction, place: int, whole: int) -> int:
  if instruction.opcode in ("dynamic-update-slice", "scatter"):
    return _bytes(computation.instructions[instruction.operands[1 if instruction.opcode[0] == "d" else -1]])
  if instruction.opcode == "fusion":
    inner = program.computations[instruction.called[0]]
    root = inner.root
    if root.opcode == "tuple":
      root = inner.instructions[root.operands[place]]
    while root.opcode in _VIEWS and root.operands:
      root = inner.instructions[root.operands[0]]
    return whole if root.opcode == "parameter" else _written(program, inner, root, 0, whole)
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
