"""Reads the text of a compiled program (`compiled.as_text()`, XLA's HLO) into computations and instructions.

Parses what the cost analysis needs: shapes with layouts, operands, called computations, and source locations.
An instruction in text form:

    ROOT %name = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} opcode(%operand, ...), attribute=value, metadata={op_name="..."}

T(8,128) is the tile size to which the last axes are padded in memory; S(1) is the memory space, omitted for HBM.
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
  order: tuple[int, ...]      # axes, fastest-varying first
  tile: tuple[int, ...]       # () if the layout has no tiles
  space: int                  # HBM or another memory space of the chip

  @property
  def bytes(self) -> int:
    """Bytes of its elements, without padding."""
    return -(-math.prod(self.axes) * BITS.get(self.type, 8 * (self.type[:2] == "f8")) // 8)

  @property
  def padded_bytes(self) -> int:
    """Bytes in memory, with the last axes padded to full tiles."""
    if not self.tile or not self.axes:
      return self.bytes
    axes = [self.axes[axis] for axis in reversed(self.order)]
    for offset in range(1, min(len(self.tile), len(axes)) + 1):
      axes[-offset] = -(-axes[-offset] // self.tile[-offset]) * self.tile[-offset]
    return self.bytes * math.prod(axes) // max(1, math.prod(self.axes))


@dataclasses.dataclass
class Instruction:
  """One HLO instruction."""
  name: str
  opcode: str
  arrays: tuple[Array, ...]   # arrays of the result; several if it is a tuple
  operands: tuple[str, ...]   # names in the same computation
  inside: str                 # text between the parentheses: value of a constant, number of a parameter
  attributes: str             # text after the parentheses
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """Returns the text of an attribute: `dim_labels=bf_io->bf` -> "bf_io->bf", `window={size=3}` -> "size=3"."""
    found = re.search(rf"[ ,]{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
    return found and found[1].removeprefix("{").removesuffix("}")

  def require_attribute(self, name: str) -> str:
    """Returns the text of an attribute that every instruction with this opcode has.

    Raises:
      ValueError: it is missing.
    """
    text = self.attribute(name)
    if text is None:
      raise ValueError(f"{self.opcode} {self.name} has no attribute {name} in the HLO")
    return text

  @property
  def called(self) -> tuple[str, ...]:
    """Computations called by a fusion, an asynchronous call or a call."""
    text = re.search(r"[ ,](?:calls|called_computations|to_apply)=(\{[^}]*\}|%?[\w.\-]+)", self.attributes)
    return tuple(name.strip().removeprefix("%") for name in text[1].strip("{}").split(",")) if text else ()

  @property
  def branches(self) -> tuple[str, ...]:
    """Branch computations of a conditional, in index order; (False, True) if the predicate is boolean."""
    text = self.attribute("branch_computations")
    if text:
      return tuple(name.strip().removeprefix("%") for name in text.split(","))
    names = [self.attribute(name) for name in ("false_computation", "true_computation")]
    return tuple(name.removeprefix("%") for name in names if name)

  @property
  def collective_piece(self) -> tuple[str, str] | None:
    """(kind, channel) of the asynchronous collective that this is a piece of; None for other instructions."""
    if '"async_collective_fusion_config"' not in self.attributes:
      return None
    channel = re.search(r"channel_id=(\d+)", self.attributes)
    return channel and (self.opcode, channel[1])

  @property
  def op_name(self) -> str:
    """JAX name-scope path of the instruction; "" if it has none."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found[1] if found else ""

  @property
  def frame(self) -> int:
    found = re.search(r"stack_frame_id=(\d+)", self.attributes)
    return int(found[1]) if found else 0

  @property
  def cycles(self) -> int:
    """The compiler's estimate of clock cycles; 0 if there is no estimate."""
    found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
    return int(found[1]) if found else 0


@dataclasses.dataclass
class Computation:
  """A named list of instructions with one root."""
  name: str
  instructions: dict[str, Instruction]     # in program order

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
  """A parsed HLO module."""
  computations: dict[str, Computation]
  entry: Computation
  frames: dict[int, tuple[str, str, int]]   # frame -> file, function, caller's frame (0: none)

  def continues_collective(self, instruction: Instruction) -> bool:
    """Returns whether an instruction continues a collective that an earlier instruction has started.

    HLO repeats an asynchronous collective in full in every fusion that it overlaps with; these pieces share kind and
    channel. The first piece in the program counts as the collective.
    """
    if not hasattr(self, "_first_pieces"):
      self._first_pieces = {}
      for computation in self.computations.values():
        for found in computation.instructions.values():
          if found.collective_piece:
            self._first_pieces.setdefault(found.collective_piece, found.name)
    piece = instruction.collective_piece
    return piece is not None and self._first_pieces[piece] != instruction.name

  def stack(self, frame: int) -> list[tuple[str, str]]:
    """Returns (file, function) of a frame and its callers, innermost first."""
    found = []
    while frame in self.frames and len(found) < 100:
      file, function, frame = self.frames[frame]
      found.append((file, function))
    return found


def parse(text: str) -> Program:
  """Parses the text that `compiled.as_text()` returns.

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
      instruction = _parse_instruction(line)
      if instruction:
        current.instructions[instruction.name] = instruction
  if entry is None:
    raise ValueError("no ENTRY computation in the HLO text")
  return Program(computations, entry, _parse_frames(tables))


def parse_arrays(shape: str) -> tuple[Array, ...]:
  """Parses a shape, such as `f32[2,3]{1,0}`, into its arrays; several for a tuple."""
  return tuple(_parse_array(match) for match in _ARRAY.finditer(shape))


def _parse_array(match: re.Match) -> Array:
  axes = tuple(int(axis.strip().removeprefix("<=")) for axis in match["axes"].split(",") if axis.strip())
  order, _, rest = (match["layout"] or "").partition(":")
  tile, space = _TILE.search(rest), _SPACE.search(rest)
  return Array(match["type"], axes,
               tuple(int(axis) for axis in order.split(",") if axis) or tuple(reversed(range(len(axes)))),
               tuple(int(size) for size in tile[1].split(",") if size.isdigit()) if tile else (),
               int(space[1]) if space else HBM)


def _parse_instruction(line: str) -> Instruction | None:
  head = _NAME.match(line)
  if not head:
    return None
  start = head.end()
  end = _find_closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
  shape = line[start:end]
  opening = line.index("(", end)
  opcode = line[end:opening].strip()
  closing = _find_closing(line, opening)
  inside = line[opening + 1:closing]
  operands = () if opcode in ("constant", "parameter") else tuple(_OPERAND.findall(inside))
  return Instruction(head["name"], opcode, parse_arrays(shape), operands, inside, line[closing + 1:],
                     bool(head["root"]))


def _find_closing(line: str, opening: int) -> int:
  """Returns the position of the parenthesis that closes the one at `opening`."""
  depth = 0
  for found in re.compile(r"[()]").finditer(line, opening):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return found.start()
  raise ValueError(f"unbalanced parentheses in HLO: {line[:200]}")


def _parse_frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, str, int]]:
  get_id = lambda text, name: int((re.search(rf"{name}=(\d+)", text) or [0, 0])[1])
  frames = {}
  for frame, text in tables["StackFrames"].items():
    location = tables["FileLocations"].get(get_id(text, "file_location_id"), "")
    frames[frame] = (tables["FileNames"].get(get_id(location, "file_name_id"), ""),
                     tables["FunctionNames"].get(get_id(location, "function_name_id"), ""),
                     get_id(text, "parent_frame_id") - 1)            # HLO writes the id plus one; 1 means no parent
  return frames
