"""Assigns instructions to parts of the network by the name scopes and source locations in their metadata.

A fusion has the metadata of its last operation, so a fusion that spans two parts is assigned to the later one.
"""

import re

from mcsam_jax.precompile.cost import Cost, Costs
from mcsam_jax.precompile.hlo import Computation, Instruction

# (Flax scope, part); the first row whose scope is in an instruction's path decides.
_SCOPES = (
    ("opt_state", "optimizer"), ("visual_encoder", "visual encoder"), ("memory_bank", "memory bank"),
    ("text_encoder", "text encoder"),
    ("image_head", "alignment"), ("report_head", "alignment"), ("alignment", "alignment"), ("logits", "logits"),
    ("decoder", "decoder"), ("patch_encoder", "encoder"), ("embed_tokens", "word embeddings"),
    ("image_conditioning", "word embeddings"), ("token_embedding", "word embeddings"),
    ("position_embedding", "word embeddings"),
    ("encode_images", "patches"), ("embed_patches", "patches"), ("extract_features", "patches"))
# (part of the file path, function or "", part of the network), used if no scope matches.
_SOURCES = (
    ("models/augment.py", "", "augmentation"), ("models/inputs.py", "", "augmentation"),
    ("training/losses.py", "token_losses", "logits"), ("training/reward/policy_gradient.py", "", "policy gradient"),
    ("models/semantic_alignment.py", "", "alignment"), ("models/contrastive.py", "", "alignment"),
    ("training/optimizer.py", "", "optimizer"),
    ("optax/", "", "optimizer"), ("decoding/", "", "search"), ("training/losses.py", "compute_alignment", "alignment"),
    ("models/mcsam.py", "", "patches"), ("training/losses.py", "forward", "logits"))
# (scope, input that queries the memory)
_QUERIED_BY = (("embed_tokens", "words"), ("encode_report", "report"), ("encode_images", "patches"),
             ("project_memory", "slots"))


def get_part(row: Cost, costs: Costs) -> str:
  """Returns the part of the network that a row belongs to: a name in the tables above, "optimizer" or "other"."""
  seen = set()
  return _find_part(row.instruction, row, costs, seen) or "other"


def get_detail(row: Cost, costs: Costs) -> str:
  """Returns the part with more detail: the visual encoder's stage or the memory's query, then forward or backward."""
  part, scopes = get_part(row, costs), _split_scopes(row.instruction.op_name)
  detail = ""
  if part == "visual encoder" and "visual_encoder" in scopes:
    after = scopes[scopes.index("visual_encoder") + 1:]
    detail = next((scope for scope in after if scope[0].isalpha()), "")
  elif part == "memory bank":
    detail = next((name for scope, name in _QUERIED_BY if scope in scopes), "")
  direction = "backward" if "transpose(" in row.instruction.op_name else "forward"
  return ", ".join(filter(None, (part, detail, "" if part in ("optimizer", "other") else direction)))


def get_purpose(row: Cost, costs: Costs) -> str:
  """Returns the purpose of a collective: gradients, parameters (with fsdp), random numbers, or a part of the network.

  The compiler combines the reductions of many gradients and names the result after one of them. Random numbers are the
  counters of dropout rows (a few integers per study), which the compiler computes sharded and gathers.
  """
  if any(function == "gather_params" for _, function in row.stack):
    return "parameters"
  combined = len(row.instruction.arrays) > 1
  scopes = _split_scopes(row.instruction.op_name)
  if not combined and ("align" in scopes or "alignment" in scopes):
    return "alignment"
  computation = costs.computation_of[row.instruction.name]
  all_integers = all(array.type == "u32" for array in row.instruction.arrays)
  if all_integers and _feeds_random_draw(row.instruction, computation, 4):
    return "random numbers"
  return "gradients" if _is_gradient(row.instruction, computation, costs, 3) else get_part(row, costs)


def _feeds_random_draw(instruction: Instruction, computation: Computation, depth: int) -> bool:
  """Returns whether a user within `depth` steps draws random numbers."""
  if re.search(r"jit\(_(bernoulli|uniform|gumbel|randint)", instruction.op_name):
    return True
  passthrough = ("get-tuple-element", "copy", "copy-start", "copy-done", "fusion", "bitcast")
  users = [user for user in computation.users(instruction.name) if user.opcode in passthrough]
  return depth > 0 and any(_feeds_random_draw(user, computation, depth - 1) for user in users)


def _is_gradient(instruction: Instruction, computation: Computation, costs: Costs, depth: int) -> bool:
  """Returns whether an instruction, or an operand within `depth` steps, belongs to a backward pass."""
  if "transpose(" in instruction.op_name:
    return True
  if not depth or instruction.op_name:
    return False
  if instruction.opcode == "fusion":
    inner = costs.program.computations[instruction.called[0]]
    if any("transpose(" in part.op_name for part in inner.instructions.values()):
      return True
  operands = (computation.instructions[name] for name in instruction.operands)
  return any(_is_gradient(operand, computation, costs, depth - 1) for operand in operands)


def _find_part(instruction: Instruction, row: Cost | None, costs: Costs, seen: set) -> str | None:
  scopes = _split_scopes(instruction.op_name)
  for scope, part in _SCOPES:
    if scope in scopes:
      return part
  stack = costs.program.stack(instruction.frame)
  for file, function, part in _SOURCES:
    if any(file in path and function in called.split(".") for path, called in stack if function) or (
        not function and any(file in path for path, _ in stack)):
      return part
  in_train_step = any(path.endswith(("training/train_step.py", "training/grad_cache.py")) for path, _ in stack)
  if in_train_step and "jvp(" not in instruction.op_name:
    return "optimizer"
  return _inherit_part(instruction, costs, seen)


def _inherit_part(instruction: Instruction, costs: Costs, seen: set) -> str | None:
  """Returns the part of an instruction without metadata from its fused computation, users or operands."""
  if instruction.name in seen or len(seen) > 12:
    return None
  seen.add(instruction.name)
  program = costs.program
  for name in instruction.called[:1] if instruction.opcode in ("fusion", "async-start") else ():
    for inner in reversed(program.computations[name].instructions.values()):
      if inner.op_name and inner.opcode != "parameter":
        part = _find_part(inner, None, costs, seen | {inner.name})
        if part:
          return part
  computation = costs.computation_of.get(instruction.name)
  if computation is None:
    return None
  operands = (computation.instructions[name] for name in instruction.operands)
  for neighbor in (*computation.users(instruction.name), *operands):
    if neighbor.opcode not in ("tuple", "while", "conditional"):
      part = _find_part(neighbor, None, costs, seen)
      if part:
        return part
  return None


def _split_scopes(op_name: str) -> list[str]:
  """Splits a name-scope path: transpose(jvp(MCSAM))/MCSAM.encode/memory_bank -> ... encode, memory_bank."""
  scopes = []
  for component in re.split(r"[/()]|\['|'\]", op_name):   # also splits state.params['decoder']['norm']
    name = component.removeprefix("MCSAM.")
    scopes += [name, *name.split(".")] if "." in name else [name]
  return [scope for scope in scopes if scope]
