"""Which part of the network an instruction belongs to, by the scopes and the source that JAX notes with it.

A fused computation carries the name of its last operation, so at the seams bytes go to the part that comes later.
"""

import re

from mcsam_jax.precompile.cost import Cost, Costs
from mcsam_jax.precompile.hlo import Computation, Instruction

# (scope of Flax, part); the first scope that occurs in an instruction's path counts.
_SCOPES = (
    ("opt_state", "optimizer"), ("visual_encoder", "visual encoder"), ("memory_bank", "memory bank"),
    ("text_encoder", "text encoder"),
    ("image_head", "alignment"), ("report_head", "alignment"), ("alignment", "alignment"), ("logits", "logits"),
    ("decoder", "decoder"), ("patch_encoder", "encoder"), ("embed_tokens", "word embeddings"),
    ("image_conditioning", "word embeddings"), ("token_embedding", "word embeddings"),
    ("position_embedding", "word embeddings"),
    ("encode_images", "patches"), ("embed_patches", "patches"), ("extract_features", "patches"))
# (end of the file, function or "", part) of the source, where there is no scope.
_SOURCES = (
    ("training/augment.py", "", "augmentation"), ("models/inputs.py", "", "augmentation"),
    ("training/losses.py", "token_losses", "logits"),
    ("models/semantic_alignment.py", "", "alignment"), ("models/contrastive.py", "", "alignment"),
    ("training/optimizer.py", "", "optimizer"),
    ("optax/", "", "optimizer"), ("decoding/", "", "search"), ("training/losses.py", "compute_alignment", "alignment"),
    ("models/mcsam.py", "", "patches"), ("training/losses.py", "forward", "logits"))
# Who asks the memory.
_ASKED_BY = (("embed_tokens", "words"), ("encode_report", "report"), ("encode_images", "patches"),
             ("project_memory", "slots"))


def part_of(row: Cost, costs: Costs) -> str:
  """Returns the part of a row: a name of the tables above, "optimizer", or "other"."""
  seen = set()
  return _part(row.instruction, row, costs, seen) or "other"


def detail_of(row: Cost, costs: Costs) -> str:
  """Returns the part and, of the visual encoder its stage, of the memory who asks, then forward or backward."""
  part, scopes = part_of(row, costs), _scopes(row.instruction.op_name)
  detail = ""
  if part == "visual encoder" and "visual_encoder" in scopes:
    after = scopes[scopes.index("visual_encoder") + 1:]
    detail = next((scope for scope in after if scope[0].isalpha()), "")
  elif part == "memory bank":
    detail = next((name for scope, name in _ASKED_BY if scope in scopes), "")
  direction = "backward" if "transpose(" in row.instruction.op_name else "forward"
  return ", ".join(filter(None, (part, detail, "" if part in ("optimizer", "other") else direction)))


def purpose_of(row: Cost, costs: Costs) -> str:
  """Returns what a collective is for: gradients, parameters (of fsdp), random numbers, or the part it stands in.

  The compiler joins the reductions of many gradients, and names the whole after one of them. Random numbers are the
  counters of a dropout's rows (a few words a study), which the compiler makes in shares and puts together.
  """
  if any(function == "gather_params" for _, function in row.stack):
    return "parameters"
  joined = len(row.instruction.arrays) > 1
  scopes = _scopes(row.instruction.op_name)
  if not joined and ("align" in scopes or "alignment" in scopes):
    return "alignment"
  home = _home(costs)[row.instruction.name]
  if all(array.type == "u32" for array in row.instruction.arrays) and _draws(row.instruction, home, 4):
    return "random numbers"
  return "gradients" if _is_gradient(row.instruction, home, costs, 3) else part_of(row, costs)


def _draws(instruction: Instruction, home: Computation, depth: int) -> bool:
  """Returns whether random numbers are drawn from an instruction within a few steps."""
  if re.search(r"jit\(_(bernoulli|uniform|gumbel|randint)", instruction.op_name):
    return True
  near = ("get-tuple-element", "copy", "copy-start", "copy-done", "fusion", "bitcast")
  return depth > 0 and any(_draws(user, home, depth - 1) for user in home.users(instruction.name)
                           if user.opcode in near)


def _is_gradient(instruction: Instruction, home: Computation, costs: Costs, depth: int) -> bool:
  """Returns whether an instruction, or what it is made of within a few steps, belongs to a backward pass."""
  if "transpose(" in instruction.op_name:
    return True
  if not depth or instruction.op_name:
    return False
  if instruction.opcode == "fusion":
    inner = costs.program.computations[instruction.called[0]]
    if any("transpose(" in part.op_name for part in inner.instructions.values()):
      return True
  return any(_is_gradient(home.instructions[name], home, costs, depth - 1) for name in instruction.operands)


def _part(instruction: Instruction, row: Cost | None, costs: Costs, seen: set) -> str | None:
  scopes = _scopes(instruction.op_name)
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
  return _inherited(instruction, costs, seen)


def _inherited(instruction: Instruction, costs: Costs, seen: set) -> str | None:
  """Returns the part of what stands in an unnamed instruction, of what it reads, or of what reads it."""
  if instruction.name in seen or len(seen) > 12:
    return None
  seen.add(instruction.name)
  program = costs.program
  for name in instruction.called[:1] if instruction.opcode in ("fusion", "async-start") else ():
    for inner in reversed(program.computations[name].instructions.values()):
      if inner.op_name and inner.opcode != "parameter":
        part = _part(inner, None, costs, seen | {inner.name})
        if part:
          return part
  home = _home(costs).get(instruction.name)
  if home is None:
    return None
  for near in (*home.users(instruction.name), *(home.instructions[name] for name in instruction.operands)):
    if near.opcode not in ("tuple", "while", "conditional"):
      part = _part(near, None, costs, seen)
      if part:
        return part
  return None


def _home(costs: Costs) -> dict:
  if not hasattr(costs, "_home"):
    costs._home = {name: computation for computation in costs.program.computations.values()
                   for name in computation.instructions}
  return costs._home


def _scopes(op_name: str) -> list[str]:
  """Returns the scopes of a path: transpose(jvp(MCSAM))/MCSAM.encode/memory_bank -> ... encode, memory_bank."""
  scopes = []
  for component in re.split(r"[/()]|\['|'\]", op_name):        # also of an argument: state.params['decoder']['norm']
    name = component.removeprefix("MCSAM.")
    scopes += [name, *name.split(".")] if "." in name else [name]
  return [scope for scope in scopes if scope]
