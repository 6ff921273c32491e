"""Maps the tensors of an R2GenCMN checkpoint (Chen et al., ACL 2021) to Flax variables.

In a published checkpoint the transformer has the prefix `encoder_decoder.`, and the image encoder consists of the
numbered children of a torchvision ResNet with the prefix `visual_extractor.model.`. The projections of the memory are
stored twice, as `cmn` and `model.cmn`.
"""

from collections.abc import Iterable
import re

from mcsam_jax.pretrained import torch_names
from mcsam_jax.pretrained.conversion import TensorMapping

TRANSFORMER_PREFIX, VISUAL_PREFIX = "encoder_decoder.", "visual_extractor.model."
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}   # ResNet
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


def is_r2gencmn(names: Iterable[str]) -> bool:
  """Returns whether these are the names of an R2GenCMN checkpoint."""
  return any(name.removeprefix(TRANSFORMER_PREFIX) == "memory_matrix" for name in names)


def is_ignored(name: str) -> bool:
  """Returns whether a tensor isn't needed: the copy of the projections, sinusoidal positions, batch counters."""
  name = name.removeprefix(TRANSFORMER_PREFIX)
  return name.startswith("cmn.linears.") or name.endswith((".pe", ".num_batches_tracked"))


def to_flax_name(name: str, ndim: int) -> str | None:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions; None for tensors of another network.

  Variables of the image encoder are named as in the encoder itself, with the prefix `visual_encoder/`.
  """
  if name.startswith(VISUAL_PREFIX):
    child, _, rest = name.removeprefix(VISUAL_PREFIX).partition(".")
    if child not in CHILDREN:
      return None
    collection, _, variable = torch_names.to_flax_name(f"{CHILDREN[child]}.{rest}", ndim).partition("/")
    return f"{collection}/visual_encoder/{variable}"
  name = name.removeprefix(TRANSFORMER_PREFIX)
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
  if part == "sublayer" and (norm := re.fullmatch(r"(\d)\.norm", inner)) and int(norm[1]) < len(NORMS[stack]):
    return f"{layer}/{NORMS[stack][int(norm[1])]}/{LEAVES[leaf]}"
  if part == "feed_forward" and inner in ("w_1", "w_2"):
    return f"{layer}/feedforward/{'hidden' if inner == 'w_1' else 'output'}/{LEAVES[leaf]}"
  if part in PARTS and (linear := re.fullmatch(r"linears\.([0-3])", inner)):
    return f"{layer}/{PARTS[part]}/{PROJECTIONS[int(linear[1])]}/{LEAVES[leaf]}"
  return None


def needs_transpose(name: str) -> bool:
  """Returns whether the axes of a tensor have to be reordered; memory slots and word embeddings have Flax's order."""
  return name.removeprefix(TRANSFORMER_PREFIX) not in UNIQUE


MAPPING = TensorMapping(to_flax_name, is_ignored, needs_transpose)
