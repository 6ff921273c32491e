"""FLOPs of matrix products and convolutions, two per multiply-add, computed from their shapes.

TPUs use one instruction for both: a batched matrix product is a convolution whose batch is a dilated axis. Therefore
only pairs of an output and a kernel position that meet an input element count, not those that meet padding or the
gaps of dilation.
"""

import functools
import math
import re

from mcsam_jax.precompile.hlo import Computation, Instruction, Program


def count_flops(program: Program, computation: Computation, instruction: Instruction) -> float:
  """Returns the FLOPs of all matrix products and convolutions in one execution of an instruction."""
  if instruction.opcode == "dot":
    left = computation.instructions[instruction.operands[0]].arrays[0]
    contracted = [int(axis) for axis in (instruction.attribute("lhs_contracting_dims") or "").split(",") if axis]
    return 2.0 * math.prod(instruction.arrays[0].axes) * math.prod(left.axes[axis] for axis in contracted)
  if instruction.opcode == "convolution":
    return _count_convolution_flops(computation, instruction)
  if instruction.opcode == "custom-call":       # a hand-written kernel states its cost
    estimate = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    return float(estimate[1]) if estimate else 0.0
  if instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
    return sum(count_flops(program, inner, part) for name in instruction.called
               for inner in [program.computations[name]] for part in inner.instructions.values())
  return 0.0


def _count_convolution_flops(computation: Computation, instruction: Instruction) -> float:
  left, kernel = (computation.instructions[name].arrays[0] for name in instruction.operands[:2])
  result = instruction.arrays[0]
  input_labels, result_labels = instruction.require_attribute("dim_labels").split("->")
  left_labels, kernel_labels = input_labels.split("_")
  window = dict(part.split("=", 1) for part in (instruction.attribute("window") or "").split())
  groups = int(instruction.attribute("batch_group_count") or 1)
  products = (left.axes[left_labels.index("b")] // groups * result.axes[result_labels.index("f")]
              * kernel.axes[kernel_labels.index("i")])
  spatial = sorted(label for label in result_labels if label.isdigit())
  get_window = lambda name, default: window.get(name, "x".join([default] * len(spatial))).split("x")
  fields = zip(spatial, get_window("size", "1"), get_window("stride", "1"), get_window("pad", "0_0"),
               get_window("lhs_dilate", "1"), get_window("rhs_dilate", "1"))
  for label, size, stride, pad, left_dilation, kernel_dilation in fields:
    products *= _count_taps(left.axes[left_labels.index(label)], result.axes[result_labels.index(label)], int(size),
                            int(stride), int(pad.split("_")[0]), int(left_dilation), int(kernel_dilation))
  return 2.0 * products


@functools.lru_cache(maxsize=4096)
def _count_taps(length: int, outputs: int, size: int, stride: int, low: int, left_dilation: int,
                kernel_dilation: int) -> int:
  """Returns how many (output, kernel position) pairs of one axis meet an element, not padding or a gap."""
  end, count = (length - 1) * left_dilation, 0
  for tap in range(size):
    first = tap * kernel_dilation - low                  # position of the first output's tap in the dilated input
    if left_dilation == 1:
      begin = max(0, -(first // stride)) if first < 0 else 0
      last = min(outputs - 1, (end - first) // stride)
      count += max(0, last - begin + 1)
    else:
      positions = (first + stride * output for output in range(outputs))
      count += sum(0 <= position <= end and position % left_dilation == 0 for position in positions)
  return count
