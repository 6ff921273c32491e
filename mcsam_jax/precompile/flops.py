"""The operations of products of matrices and convolutions, two a multiplication, from their shapes.

TPUs have one instruction for both: a batch of products is a convolution whose batch is a dilated axis. So what
counts are the pairs of an output and a kernel position that meet an element of the input, not the gaps and margins.
"""

import functools
import math
import re

from mcsam_jax.precompile.hlo import Computation, Instruction, Program


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
