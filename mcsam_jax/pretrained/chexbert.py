"""Imports CheXbert: maps the tensors of the authors' chexbert.pth to Flax variables, stored with the vocabulary.

In chexbert.pth, `bert.` is the BertModel of `transformers` and `linear_heads.N` are the heads, in `model_state_dict`
and with the prefix `module.` of a parallel wrapper. The pooler, which CheXbert doesn't use, is ignored.
"""

from collections.abc import Callable, Iterable
import dataclasses
import hashlib
import re

from etils import epath
from flax import traverse_util

from input_pipeline.wordpiece import read_vocabulary
from mcsam_jax.checkpoints.weights import save_weights, WEIGHT_MARKS
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.models.text_labeler.bert import BertConfig
from mcsam_jax.models.text_labeler.chexbert import variable_shapes
from mcsam_jax.pretrained.conversion import convert, ImportReport, TensorMapping
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.wrappers import peel_wrappers

EMBEDDINGS = {"word_embeddings": "word", "position_embeddings": "position", "token_type_embeddings": "token_type"}
PARTS = {"attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
         "attention.output.dense": "attention_output", "attention.output.LayerNorm": "attention_norm",
         "intermediate.dense": "hidden", "output.dense": "output", "output.LayerNorm": "output_norm"}
IGNORED_PREFIXES = ("bert.pooler.", "bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def is_chexbert(names: Iterable[str]) -> bool:
  """Returns whether these are the names of a CheXbert checkpoint, or of a labeler with the same architecture."""
  return any(name.startswith("linear_heads.") for name in names)


def is_ignored(name: str) -> bool:
  """Returns whether the labeler doesn't need a tensor."""
  return name.startswith(IGNORED_PREFIXES)


def needs_transpose(name: str) -> bool:
  """Returns whether the axes of a tensor have to be reordered; embedding tables are [rows, width] in both."""
  return "_embeddings." not in name


def to_flax_name(name: str, ndim: int) -> str | None:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions; None for tensors of another network."""
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


MAPPING = TensorMapping(to_flax_name, is_ignored, needs_transpose)


def import_chexbert(src: str, dst: str, vocabulary: str, log: Callable[[str], None] = print,
                    sizes: BertConfig | None = None) -> ImportReport:
  """Writes the weights and the vocabulary of a CheXbert to one .npz file, for `eval.chexbert`.

  Args:
    src: chexbert.pth; read without PyTorch.
    dst: the .npz file to write.
    vocabulary: vocab.txt of the BERT from which CheXbert was trained (see `read_vocabulary`).
    log: receives each line of the report.
    sizes: dimensions of the BERT; by default those of bert-base-uncased.

  Raises:
    UserError: a file is missing or damaged, or they aren't a CheXbert and its vocabulary; nothing is written.
  """
  check_output("FILE.npz", dst, *WEIGHT_MARKS)
  sizes = sizes or BertConfig()
  pieces = read_vocabulary(vocabulary)
  if len(pieces) != sizes.vocab_size:
    raise UserError(f"{vocabulary} has {len(pieces)} pieces, but CheXbert's vocabulary has {sizes.vocab_size}: use the "
                    "vocab.txt of bert-base-uncased")
  tensors = peel_wrappers(read_state_dict(src, log), is_chexbert, log)
  if not is_chexbert(tensors):
    raise UserError(f"{src}: not a CheXbert model, it has no linear_heads; use `mcsam import-weights encoder` for an "
                    "image encoder")
  flat: dict = traverse_util.flatten_dict(variable_shapes(sizes), sep="/")
  shapes = {name: leaf.shape for name, leaf in flat.items()}
  variables, report = convert(tensors, "chexbert", shapes, MAPPING)
  for line in report.lines():
    log(line)
  if not report.is_complete:
    raise UserError(f"{src}: doesn't match CheXbert (see the names above); nothing was written")
  save_weights(dst, variables, {
      "architecture": "chexbert", "sizes": dataclasses.asdict(sizes), "vocabulary": pieces,
      "source": epath.Path(src).name, "sha256": hashlib.sha256(epath.Path(src).read_bytes()).hexdigest(),
      "pretraining_data": "CheXbert's"})
  log(f"wrote {dst}; use it with --config.eval.labeler=chexbert --config.eval.chexbert={dst}")
  return report
