"""The tensors of an R2GenCMN checkpoint (Chen et al., ACL 2021) in terms of our variables.

A published checkpoint keeps its transformer behind `encoder_decoder.` and the children of a torchvision ResNet, in
their order, behind `visual_extractor.model.`. The memory's projections stand there twice, as `cmn` and `model.cmn`.
"""

import re

from mcsam_jax.pretrained import torch_names

TRANSFORMER, VISUAL = "encoder_decoder.", "visual_extractor.model."
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}   # of a ResNet
PROJECTIONS = ("query", "key", "value", "output")
NORMS = {"encoder": ("norm_attention", "norm_feedforward"), "decoder": ("norm_self", "norm_cross", "norm_feedforward")}
PARTS = {"self_attn": "self_attention", "src_attn": "cross_attention", "feed_forward": "feedforward"}
LEAVES = {"weight": "kernel", "bias": "bias", "a_2": "scale", "b_2": "bias"}
UNIQUE = {
    "memory_matrix": "memory_bank/slots",
    "model.tgt_embed.0.lut.weight": "token_embedding/embedding",
    "model.encoder.norm": "patch_encoder/final_norm",
    "model.decoder.norm": "decoder/final_norm",
    "att_embed.0": "patch_projection",
    "logit": "decoder/logits",
}


def is_r2gencmn(names) -> bool:
  """Tells whether these are the tensors of an R2GenCMN."""
  return any(name.removeprefix(TRANSFORMER) == "memory_matrix" for name in names)


def is_left_behind(name: str) -> bool:
  """Tells whether a tensor is not needed: the second name of the memory's projections, positions, counters."""
  name = name.removeprefix(TRANSFORMER)
  return name.startswith("cmn.linears.") or name.endswith((".pe", ".num_batches_tracked"))


def flax_name(name: str, ndim: int) -> str | None:
  """Returns the flat name of the variable that a tensor of `ndim` dimensions becomes, None where it becomes none.

  Those of the image encoder are called as in the encoder itself, behind `visual_encoder/`.
  """
  if name.startswith(VISUAL):
    child, _, rest = name.removeprefix(VISUAL).partition(".")
    if child not in CHILDREN:
      return None
    collection, _, variable = torch_names.flax_name(f"{CHILDREN[child]}.{rest}", ndim).partition("/")
    return f"{collection}/visual_encoder/{variable}"
  name = name.removeprefix(TRANSFORMER)
  if name in UNIQUE:
    return f"params/{UNIQUE[name]}"
  module, _, leaf = name.rpartition(".")
  if leaf not in LEAVES:
    return None
  if module in UNIQUE:
    return f"params/{UNIQUE[module]}/{LEAVES[leaf]}"
  if match := re.fullmatch(r"model\.cmn\.linears\.([0-3])", module):
    return f"params/memory_bank/{PROJECTIONS[int(match[1])]}/{LEAVES[leaf]}"
  match = re.fullmatch(r"model\.(encoder|decoder)\.layers\.(\d+)\.(\w+)\.(.+)", module)
  if not match:
    return None
  stack, number, part, inner = match.groups()
  layer = f"params/{'patch_encoder' if stack == 'encoder' else stack}/layers_{number}"
  if part == "sublayer" and (inner := re.fullmatch(r"(\d)\.norm", inner)) and int(inner[1]) < len(NORMS[stack]):
    return f"{layer}/{NORMS[stack][int(inner[1])]}/{LEAVES[leaf]}"
  if part == "feed_forward" and inner in ("w_1", "w_2"):
    return f"{layer}/feedforward/{'hidden' if inner == 'w_1' else 'output'}/{LEAVES[leaf]}"
  if part in PARTS and (inner := re.fullmatch(r"linears\.([0-3])", inner)):
    return f"{layer}/{PARTS[part]}/{PROJECTIONS[int(inner[1])]}/{LEAVES[leaf]}"
  return None


def turned(name: str) -> bool:
  """Tells whether a tensor's axes are to be put in Flax's order; slots and word embeddings stay as they are."""
  return name.removeprefix(TRANSFORMER) not in UNIQUE
