"""The tensors of the authors' chexbert.pth in terms of ours, and the file that holds weights and vocabulary together.

In theirs `bert.` is the BertModel of `transformers` and `linear_heads.N` are the heads, all behind the `module.` of a
parallel wrapper and under `model_state_dict`. The pooler, which their network never asks, is left behind.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import re
import sys

from etils import epath
from flax import traverse_util

from input_pipeline.wordpiece import read_vocabulary
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.errors import UserError
from mcsam_jax.models.bert import BertConfig
from mcsam_jax.models.chexbert import variable_shapes
from mcsam_jax.pretrained.import_weights import convert, ImportReport
from mcsam_jax.pretrained.torch_file import read_state_dict

EMBEDDINGS = {"word_embeddings": "word", "position_embeddings": "position", "token_type_embeddings": "token_type"}
PARTS = {"attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
         "attention.output.dense": "attention_output", "attention.output.LayerNorm": "attention_norm",
         "intermediate.dense": "hidden", "output.dense": "output", "output.LayerNorm": "output_norm"}
LEFT_BEHIND = ("bert.pooler.", "bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def is_chexbert(names) -> bool:
  """Tells whether these are the tensors of a CheXbert, or of a labeler built like it."""
  return any(name.startswith("linear_heads.") for name in names)


def is_left_behind(name: str) -> bool:
  return name.startswith(LEFT_BEHIND)


def turned(name: str) -> bool:
  """Tells whether a tensor's axes are to be put in Flax's order; rows of embeddings stay rows."""
  return "_embeddings." not in name


def flax_name(name: str, ndim: int) -> str | None:
  """Returns the flat name of the variable that a tensor becomes; None for one of another network."""
  module, _, leaf = name.rpartition(".")
  leaf = {"weight": "scale" if ndim == 1 else "kernel", "bias": "bias"}.get(leaf)
  if leaf is None:
    return None
  if head := re.fullmatch(r"linear_heads\.(\d+)", module):
    return f"params/head_{head[1]}/{leaf}"
  if module == "bert.embeddings.LayerNorm":
    return f"params/bert/embeddings/norm/{leaf}"
  if (table := EMBEDDINGS.get(module.removeprefix("bert.embeddings."))) and leaf == "kernel":
    return f"params/bert/embeddings/{table}"
  layer = re.fullmatch(r"bert\.encoder\.layer\.(\d+)\.(.+)", module)
  return f"params/bert/layer_{layer[1]}/{PARTS[layer[2]]}/{leaf}" if layer and layer[2] in PARTS else None


def import_chexbert(src: str, dst: str, vocabulary: str, log: Callable[[str], None] = print,
                    sizes: BertConfig = BertConfig()) -> ImportReport:
  """Writes weights and vocabulary of a CheXbert to one .npz, for `eval.chexbert`.

  Args:
    src: chexbert.pth; read without PyTorch.
    dst: the .npz to write.
    vocabulary: vocab.txt of the BERT that it was trained from (see `read_vocabulary`).
    show: receives a line for each name.
    sizes: of the BERT.

  Raises:
    UserError: a file is missing or damaged, or they are no CheXbert and its vocabulary; nothing is written then.
  """
  pieces = read_vocabulary(vocabulary)
  if len(pieces) != sizes.vocab_size:
    raise UserError(f"{vocabulary} has {len(pieces)} pieces, CheXbert's vocabulary {sizes.vocab_size}: take the "
                    "vocab.txt of bert-base-uncased")
  tensors = read_state_dict(src, log)
  if not is_chexbert(tensors):
    raise UserError(f"{src}: no CheXbert, it has no linear_heads; an image encoder is imported with `mcsam import-weights encoder`")
  shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(variable_shapes(sizes), sep="/").items()}
  variables, report = convert(tensors, "chexbert", shapes, sys.modules[__name__])
  for line in report.lines():
    log(line)
  if not report.fits:
    raise UserError(f"{src}: doesn't fit CheXbert (see the names above); nothing was written")
  save_weights(dst, variables, {
      "architecture": "chexbert", "sizes": dataclasses.asdict(sizes), "vocabulary": pieces,
      "source": epath.Path(src).name, "sha256": hashlib.sha256(epath.Path(src).read_bytes()).hexdigest(),
      "pretraining_data": "CheXbert's"})
  log(f"wrote {dst}; use it with --config.eval.labeler=chexbert --config.eval.chexbert={dst}")
  return report
