"""Trip counts of the loops of a compiled program."""

import dataclasses
import re

from mcsam_jax.precompile.hlo import Computation, Instruction, Program


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
  """Returns how often a loop body runs; None if that depends on the data.

  Uses the compiler's annotation, or else the start, step and bound of the loop counter.
  """
  known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
  if known:
    return int(known[1])
  condition = program.computations[loop.require_attribute("condition").removeprefix("%")]
  body = program.computations[loop.require_attribute("body").removeprefix("%")]
  test = _skip_copies(condition, condition.root)
  while test.opcode == "fusion":
    condition, test = _inline_fusion(program, condition, test)
  if test.opcode != "compare":
    return None
  counter, bound = (_skip_copies(condition, condition.instructions[name]) for name in test.operands)
  direction = test.attribute("direction")
  if counter.opcode == "constant":
    counter, bound, direction = bound, counter, {"GT": "LT", "GE": "LE"}.get(direction or "")
  if counter.opcode != "get-tuple-element" or bound.opcode != "constant" or direction not in ("LT", "LE"):
    return None
  index = int(counter.require_attribute("index"))
  start = _get_tuple_element(computation, loop.operands[0], index)
  after = _get_tuple_element(body, body.root.name, index)
  if start is None or after is None or start.opcode != "constant" or after.opcode != "add":
    return None
  steps = [_skip_copies(body, body.instructions[name]) for name in after.operands]
  step = next((found for found in steps if found.opcode == "constant"), None)
  if step is None or not any(found.opcode == "get-tuple-element" and found.attribute("index") == str(index)
                             for found in steps) or int(step.inside) < 1:
    return None
  span = int(bound.inside) - int(start.inside) + (direction == "LE")
  return max(0, -(-span // int(step.inside)))


def _skip_copies(computation: Computation, instruction: Instruction) -> Instruction:
  while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    instruction = computation.instructions[instruction.operands[0]]
  return instruction


def _get_tuple_element(computation: Computation, name: str, index: int) -> Instruction | None:
  made = computation.instructions[name]
  return _skip_copies(computation, computation.instructions[made.operands[index]]) if made.opcode == "tuple" else None


def _inline_fusion(program: Program, outer: Computation, fusion: Instruction) -> tuple[Computation, Instruction]:
  """Returns `outer` with the fused computation inlined, and the root of the fused computation."""
  inner = program.computations[fusion.called[0]]
  joined = dict(outer.instructions)
  for instruction in inner.instructions.values():
    if instruction.opcode == "parameter":
      source = outer.instructions[fusion.operands[int(instruction.inside)]]
      instruction = dataclasses.replace(instruction, opcode="copy", operands=(source.name,))
    joined[instruction.name] = instruction
  return Computation(inner.name, joined), _skip_copies(Computation(inner.name, joined), joined[inner.root.name])
