"""Reads the text of a compiled program (`compiled.as_text()`, XLA's HLO) into computations and instructions.

Only what accounting needs: shapes with their layout, operands, called computations, and where an instruction comes
from in the source. An instruction in text form:

    ROOT %name = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} opcode(%operand, ...), attribute=value, metadata={op_name="..."}

T(8,128) are tiles, to which the last axes are filled up in memory; S(1) is the memory space, absent in HBM.
"""

import dataclasses
import math
import re

BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
        "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}
HBM = 0
_ARRAY = re.compile(r"(?P<type>[a-z]+[0-9]*[a-z0-9]*)\[(?P<axes>[^\]]*)\](?:\{(?P<layout>[^}]*)\})?")
_TILE = re.compile(r"T\(([0-9,*]+)\)")
_SPACE = re.compile(r"S\(([0-9]+)\)")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_FRAME = re.compile(r"^(\d+) \{(.*)\}$")
_QUOTED = re.compile(r'^(\d+) "(.*)"$')


@dataclasses.dataclass(frozen=True)
class Array:
  """An array in memory."""
  type: str
  axes: tuple[int, ...]
  order: tuple[int, ...]      # axes from the fastest to the slowest
  tile: tuple[int, ...]       # () where there is none
  space: int                  # HBM, or another memory of the chip

  @property
  def bytes(self) -> int:
    """What its elements take."""
    return -(-math.prod(self.axes) * BITS.get(self.type, 8 * (self.type[:2] == "f8")) // 8)

  @property
  def padded_bytes(self) -> int:
    """What it takes in memory, its last axes filled up to whole tiles."""
    if not self.tile or not self.axes:
      return self.bytes
    axes = [self.axes[axis] for axis in reversed(self.order)]
    for place in range(1, min(len(self.tile), len(axes)) + 1):
      axes[-place] = -(-axes[-place] // self.tile[-place]) * self.tile[-place]
    return self.bytes * math.prod(axes) // max(1, math.prod(self.axes))


@dataclasses.dataclass
class Instruction:
  name: str
  opcode: str
  arrays: tuple[Array, ...]   # of the result; several of a tuple
  operands: tuple[str, ...]   # names in the same computation
  inside: str                 # the text between the parentheses: a constant's value, a parameter's number
  attributes: str             # the text behind the parentheses
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """Returns a plain attribute's text: `dim_labels=bf_io->bf` -> "bf_io->bf", `window={size=3}` -> "size=3"."""
    found = re.search(rf"[ ,]{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
    return found and found[1].removeprefix("{").removesuffix("}")

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that are a part of this instruction: of a fusion, an asynchronous call, a call."""
    text = re.search(r"[ ,](?:calls|called_computations|to_apply)=(\{[^}]*\}|%?[\w.\-]+)", self.attributes)
    return tuple(name.strip().removeprefix("%") for name in text[1].strip("{}").split(",")) if text else ()

  @property
  def branches(self) -> tuple[str, ...]:
    """Computations of which a conditional runs one; the first for index 0 or, of two, for False."""
    text = self.attribute("branch_computations")
    if text:
      return tuple(name.strip().removeprefix("%") for name in text.split(","))
    names = [self.attribute(name) for name in ("false_computation", "true_computation")]
    return tuple(name.removeprefix("%") for name in names if name)

  @property
  def collective_piece(self) -> tuple[str, str] | None:
    """Kind and channel of the asynchronous collective that it is a piece of; None where it is none."""
    if '"async_collective_fusion_config"' not in self.attributes:
      return None
    channel = re.search(r"channel_id=(\d+)", self.attributes)
    return channel and (self.opcode, channel[1])

  @property
  def op_name(self) -> str:
    """The path of JAX's scopes that the instruction comes from."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found[1] if found else ""

  @property
  def frame(self) -> int:
    found = re.search(r"stack_frame_id=(\d+)", self.attributes)
    return int(found[1]) if found else 0

  @property
  def cycles(self) -> int:
    """The compiler's own estimate of the clock cycles that it takes; 0 where it makes none."""
    found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
    return int(found[1]) if found else 0


@dataclasses.dataclass
class Computation:
  name: str
  instructions: dict[str, Instruction]     # in the order in which they stand

  @property
  def root(self) -> Instruction:
    return next((found for found in self.instructions.values() if found.is_root), None) or (
        list(self.instructions.values())[-1])

  def parameter(self, number: int) -> Instruction:
    return next(found for found in self.instructions.values()
                if found.opcode == "parameter" and found.inside == str(number))

  def users(self, name: str) -> list[Instruction]:
    if not hasattr(self, "_users"):
      self._users = {}
      for instruction in self.instructions.values():
        for operand in dict.fromkeys(instruction.operands):
          self._users.setdefault(operand, []).append(instruction)
    return self._users.get(name, [])


@dataclasses.dataclass
class Program:
  computations: dict[str, Computation]
  entry: Computation
  frames: dict[int, tuple[str, str, int]]   # frame -> file, function, the frame that called it (0: none)

  def goes_on(self, instruction: Instruction) -> bool:
    """Tells whether it goes on with a collective that another instruction has begun.

    An asynchronous collective is written out in each of the fusions beside whose work it proceeds, whole every time;
    its pieces share kind and channel. The first that stands in the program is taken for all of it.
    """
    if not hasattr(self, "_begun"):
      self._begun = {}
      for computation in self.computations.values():
        for found in computation.instructions.values():
          if found.collective_piece:
            self._begun.setdefault(found.collective_piece, found.name)
    piece = instruction.collective_piece
    return piece is not None and self._begun[piece] != instruction.name

  def stack(self, frame: int) -> list[tuple[str, str]]:
    """Returns (file, function) of a frame and of its callers, the innermost first."""
    found = []
    while frame in self.frames and len(found) < 100:
      file, function, frame = self.frames[frame]
      found.append((file, function))
    return found


def parse(text: str) -> Program:
  """Returns the program of `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry, current = {}, None, None
  tables, table = {"FileNames": {}, "FunctionNames": {}, "FileLocations": {}, "StackFrames": {}}, None
  for line in text.splitlines():
    if current is None:
      head = _HEAD.match(line)
      if head:
        current = Computation(head["name"], {})
        computations[current.name] = current
        entry = current if head["entry"] else entry
      elif line in tables:
        table = tables[line]
      elif table is not None:
        row = _FRAME.match(line) or _QUOTED.match(line)
        if row:
          table[int(row[1])] = row[2]
    elif line.startswith("}"):
      current = None
    else:
      instruction = _instruction(line)
      if instruction:
        current.instructions[instruction.name] = instruction
  if entry is None:
    raise ValueError("no ENTRY computation in the HLO text")
  return Program(computations, entry, _frames(tables))


def arrays_of(shape: str) -> tuple[Array, ...]:
  """Returns the arrays of a shape's text, those of tuples in order."""
  return tuple(_array(found) for found in _ARRAY.finditer(shape))


def _array(found: re.Match) -> Array:
  axes = tuple(int(axis.strip().removeprefix("<=")) for axis in found["axes"].split(",") if axis.strip())
  order, _, rest = (found["layout"] or "").partition(":")
  tile, space = _TILE.search(rest), _SPACE.search(rest)
  return Array(found["type"], axes,
               tuple(int(axis) for axis in order.split(",") if axis) or tuple(reversed(range(len(axes)))),
               tuple(int(size) for size in tile[1].split(",") if size.isdigit()) if tile else (),
               int(space[1]) if space else HBM)


def _instruction(line: str) -> Instruction | None:
  head = _NAME.match(line)
  if not head:
    return None
  start = head.end()
  end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
  shape = line[start:end]
  opening = line.index("(", end)
  opcode = line[end:opening].strip()
  closing = _closing(line, opening)
  inside = line[opening + 1:closing]
  operands = () if opcode in ("constant", "parameter") else tuple(_OPERAND.findall(inside))
  return Instruction(head["name"], opcode, arrays_of(shape), operands, inside, line[closing + 1:], bool(head["root"]))


def _closing(line: str, opening: int) -> int:
  """Returns the place of the parenthesis that closes the one at `opening`."""
  depth = 0
  for found in re.compile(r"[()]").finditer(line, opening):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return found.start()
  raise ValueError(f"unbalanced parentheses in HLO: {line[:200]}")


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, str, int]]:
  number = lambda text, name: int((re.search(rf"{name}=(\d+)", text) or [0, 0])[1])
  frames = {}
  for frame, text in tables["StackFrames"].items():
    location = tables["FileLocations"].get(number(text, "file_location_id"), "")
    frames[frame] = (tables["FileNames"].get(number(location, "file_name_id"), ""),
                     tables["FunctionNames"].get(number(location, "function_name_id"), ""),
                     number(text, "parent_frame_id") - 1)            # as it is written, 1 means none
  return frames
