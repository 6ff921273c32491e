"""Maps the tensors of MedCLIP (Wang et al., EMNLP 2022) to Flax variables, and imports its word vectors.

In MedCLIP's `pytorch_model.bin`, `vision_model.model.` is a torchvision ResNet-50 whose `fc` projects to 512
dimensions, and `text_model.model.` is a BERT. The ResNet can initialize the image encoder; the word embeddings of the
BERT can be the word vectors for the memory's topics.
"""

from collections.abc import Callable, Iterable
import io

import numpy as np

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.weights import find_weight_error
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.files.untrusted import read_regular_file
from mcsam_jax.pretrained import torch_names
from mcsam_jax.pretrained.conversion import TensorMapping
from mcsam_jax.pretrained.torch_file import read_state_dict

VISION_PREFIX = "vision_model.model."
WORD_EMBEDDINGS_SUFFIX = "embeddings.word_embeddings.weight"       # the name in any BERT, after any prefix


def is_medclip(names: Iterable[str]) -> bool:
  """Returns whether these are the names of a MedCLIP checkpoint with a ResNet."""
  return any(name.startswith(VISION_PREFIX) for name in names)


def is_ignored(name: str) -> bool:
  """Returns whether the image encoder doesn't need a tensor: BERT, projections, batch counters."""
  return not name.startswith(VISION_PREFIX) or torch_names.is_ignored(name.removeprefix(VISION_PREFIX))


def to_flax_name(name: str, ndim: int) -> str:
  """Returns the flat name of the variable for a tensor of `ndim` dimensions."""
  return torch_names.to_flax_name(name.removeprefix(VISION_PREFIX), ndim)


MAPPING = TensorMapping(to_flax_name, is_ignored)


def import_word_vectors(src: str, dst: str, vocabulary: str, log: Callable[[str], None] = print) -> None:
  """Writes the word embeddings of the BERT in a checkpoint to a file for `memory_init.word_vectors`.

  Only entire words are kept, not word pieces ("##tion") or special tokens ("[CLS]"). Words that the tokenizer splits
  have no vector.

  Args:
    src: a checkpoint (`pytorch_model.bin`, `.pth`, `.safetensors`).
    dst: the .npz file to write, with `words` [W] and `vectors` [W, D].
    vocabulary: the tokenizer's `vocab.txt`, one piece per line.
    log: receives progress lines.

  Raises:
    UserError: a file is missing or damaged, or the files don't belong together; nothing is written.
  """
  check_output("FILE.npz", dst, "words.npy", "vectors.npy")
  tensors = read_state_dict(src, log)
  names = [name for name in tensors if name.endswith(WORD_EMBEDDINGS_SUFFIX)]
  if len(names) != 1:
    raise UserError(f"{src}: found {len(names)} tensors whose name ends with {WORD_EMBEDDINGS_SUFFIX}, expected one; "
                    "is this a checkpoint with a BERT?")
  name = names[0]
  try:
    pieces = read_regular_file(vocabulary).decode("utf-8-sig").removesuffix("\n").split("\n")
  except OSError as error:
    raise UserError(f"{vocabulary}: cannot be read ({error.strerror or error})") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{vocabulary}: not UTF-8 text ({error.reason}); expected the vocab.txt of a BERT") from error
  if defect := find_weight_error(tensors[name]):
    raise UserError(f"{src}: {name} has no valid word vectors: {defect}")
  vectors = tensors[name].astype(np.float32)
  if len(pieces) != len(vectors):
    raise UserError(f"{vocabulary} has {len(pieces)} lines, but {name} of {src} has {len(vectors)} rows: they belong "
                    "to different models")
  word_rows = [row for row, piece in enumerate(pieces) if piece and not piece.startswith(("##", "["))]
  buffer = io.BytesIO()
  np.savez(buffer, words=np.array([pieces[row] for row in word_rows]), vectors=vectors[word_rows])
  atomic_write(dst, buffer.getvalue())
  log(f"wrote vectors of {len(word_rows)} words, of width {vectors.shape[1]}, to {dst}; use it with "
      f"--config.memory_init.word_vectors={dst} --config.memory.slot_width={vectors.shape[1]}")
