"""The tensors of a MedCLIP checkpoint (Wang et al., EMNLP 2022; `pytorch_model.bin`) in terms of ours.

`vision_model.model.` is a torchvision ResNet-50 whose `fc` projects to 512; `text_model.model.` is a BERT. The image
encoder takes the first, the memory's topics can start from the second's word embeddings.
"""

from collections.abc import Callable
import io

from etils import epath
import numpy as np

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.pretrained import torch_names
from mcsam_jax.pretrained.torch_file import not_weights, read_state_dict
from mcsam_jax.pretrained.torch_names import turned  # noqa: F401  (the rule is torchvision's)

VISION = "vision_model.model."
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"       # of any BERT, behind whatever prefix


def is_medclip(names) -> bool:
  """Tells whether these are the tensors of a MedCLIP with a ResNet."""
  return any(name.startswith(VISION) for name in names)


def is_left_behind(name: str) -> bool:
  """Tells whether a tensor is no part of the image encoder: BERT, projections, counters."""
  return not name.startswith(VISION) or torch_names.is_left_behind(name.removeprefix(VISION))


def flax_name(name: str, ndim: int) -> str:
  return torch_names.flax_name(name.removeprefix(VISION), ndim)


def import_word_vectors(src: str, dst: str, vocabulary: str, log: Callable[[str], None] = print) -> None:
  """Writes the word embeddings of a BERT inside a checkpoint for `memory_init.word_vectors`.

  Only whole words are kept: no pieces ("##tion"), no "[CLS]". A word that the tokenizer splits has no vector.

  Args:
    src: a checkpoint (`pytorch_model.bin`, `.pth`, `.safetensors`).
    dst: the .npz to write: `words` [W] and `vectors` [W, D].
    vocabulary: the tokenizer's `vocab.txt`, a piece a line.

  Raises:
    UserError: a file is missing or damaged, or the two don't belong together; nothing is written then.
  """
  tensors = read_state_dict(src, log)
  found = [name for name in tensors if name.endswith(WORD_EMBEDDINGS)]
  if len(found) != 1:
    raise UserError(f"{src}: {len(found)} tensors end with {WORD_EMBEDDINGS}; expected one, a BERT's")
  try:
    pieces = epath.Path(vocabulary).read_bytes().decode().removesuffix("\n").split("\n")
  except OSError as error:
    raise UserError(f"{vocabulary}: cannot be read ({error.strerror or error})") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{vocabulary}: no text in UTF-8, so no BERT's vocabulary ({error.reason})") from error
  if why := not_weights(tensors[found[0]]):
    raise UserError(f"{src}: {found[0]} holds no word vectors: {why}")
  vectors = tensors[found[0]].astype(np.float32)
  if len(pieces) != len(vectors):
    raise UserError(f"{vocabulary} has {len(pieces)} lines, {found[0]} of {src} {len(vectors)} rows: they belong to "
                    "different models")
  whole = [row for row, piece in enumerate(pieces) if piece and not piece.startswith(("##", "["))]
  buffer = io.BytesIO()
  np.savez(buffer, words=np.array([pieces[row] for row in whole]), vectors=vectors[whole])
  atomic_write(dst, buffer.getvalue())
  log(f"wrote {len(whole)} words of width {vectors.shape[1]} to {dst}; use it with --config.memory_init.word_vectors="
       f"{dst} --config.memory.slot_width={vectors.shape[1]}")
