"""What a compiled program sends between devices, read from its HLO text."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32,
        "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
_CALL = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"(?P<type>[a-z]+[0-9]*)\[(?P<axes>[0-9,]*)\]")


def collectives(hlo: str) -> dict[str, list[int]]:
  """Returns the bytes of each collective's result on one device, by kind; a loop's body counts once.

  Args:
    hlo: `compiled.as_text()`.
  """
  found = collections.defaultdict(list)
  for call in _CALL.finditer(hlo):
    arrays = [math.prod(map(int, array["axes"].split(","))) * BITS[array["type"]] // 8 if array["axes"] else
              BITS[array["type"]] // 8 for array in _ARRAY.finditer(call["shape"]) if array["type"] in BITS]
    if call["start"] and len(arrays) > 1:              # an asynchronous start shows its operands too
      arrays = arrays[len(arrays) // 2:]
    found[call["kind"]].append(sum(arrays))
  return dict(found)
