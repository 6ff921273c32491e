"""The beam search of a trained model as one StableHLO program, which runs with jax alone.

    search(images uint8 [B, V, S, S, 1], view_mask bool [B, V], view_ids int32 [B, V])
      -> (ids int32 [B, K, T], log_probs float32 [B, K])

The images are those of `Model.preprocess`, the views are as in a batch (input_pipeline/batch.py), and the reports are
those of the beam search, best first. The weights are part of the program. JAX runs programs that were exported at most
six months earlier, or at most three weeks later, than its own release.

Shapes: B studies, V views, S image size in pixels, K beams, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json

from flax import linen as nn
import jax
import jax.export
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.errors import UserError
from mcsam_jax.findings import VIEWS
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.inference.image_encoder import encode_images
from mcsam_jax.inference.search import make_search_fn
from mcsam_jax.models.mcsam import MCSAM

PLATFORMS = ("cpu", "cuda", "tpu")
FIXED_BATCH_SIZE = 4         # where the network doesn't allow a symbolic batch size
PROGRAM_FILE, DESCRIPTION_FILE = "search.stablehlo", "search.json"


def export_search(model: MCSAM, variables: dict, encoder: tuple[nn.Module, dict] | None, config: ConfigDict,
                  tokenizer: Tokenizer, log: Callable[[str], None],
                  platforms: Sequence[str] = PLATFORMS) -> tuple[bytes, dict]:
  """Returns the serialized program of `jax.export`, and its description for search.json.

  Args:
    model: the network.
    variables: its variables.
    encoder: module and variables of a frozen image encoder, or of its frozen stages; None if the network has its own.
    config: `decode` says how to search.
    tokenizer: names the special tokens.
    log: receives a line for each platform that is left out, and if the batch size is fixed.
    platforms: those that the program should run on.

  Raises:
    UserError: the program can't be exported for any platform.
  """
  search_fn = make_search_fn([model], config, tokenizer, "beam", config.decode.beam_size)

  @jax.jit
  def search(images: jax.Array, view_mask: jax.Array, view_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The barrier keeps the compiler from evaluating large parts of the network on the constant weights.
    weights, encoder_weights = jax.lax.optimization_barrier((variables, encoder and encoder[1]))
    batch = {"images": images, "view_mask": view_mask, "view_ids": view_ids, "valid": view_mask.any(-1),
             "record": view_ids[:, 0]}
    if encoder is not None:
      features = encode_images(encoder[0], config, encoder_weights, images.reshape(-1, *images.shape[2:]))
      features = features.astype("float16").reshape(*images.shape[:2], *features.shape[1:])      # [B, V, P, C]
      batch = {"features": features, **batch}
    constants = Ensemble([model]).make_decode_constants([weights])
    candidates = search_fn([weights], constants, batch, None)
    return candidates.ids, candidates.log_probs

  num_views, image_size = config.data.num_views, config.data.image_size
  batch_size, = jax.export.symbolic_shape("batch")
  for size in (batch_size, FIXED_BATCH_SIZE):
    shapes = (jax.ShapeDtypeStruct((size, num_views, image_size, image_size, 1), np.uint8),
              jax.ShapeDtypeStruct((size, num_views), np.bool_), jax.ShapeDtypeStruct((size, num_views), np.int32))
    program, exported_for = _export_for_most_platforms(search, shapes, platforms, log)
    if program is not None:
      break
    if size is batch_size:
      log(f"the program can't be exported for any batch size; trying {FIXED_BATCH_SIZE} studies")
  else:
    raise UserError("the search of this model can't be exported as StableHLO, see above; export it without --stablehlo")
  words = tokenizer.get_vocabulary()
  if tokenizer.kind == "word":                               # as SentencePiece writes them: a word begins with a mark
    words = [f"▁{word}" for word in words]
  return bytes(program.serialize()), {
      "platforms": list(exported_for), "batch_size": "any" if size is batch_size else size, "num_views": num_views,
      "image_size": image_size, "views": list(VIEWS), "decode": config.decode.to_dict(), "eos_id": tokenizer.eos_id,
      "pad_id": tokenizer.pad_id, "vocabulary": words, "jax": jax.__version__}


def _export_for_most_platforms(search, shapes: Sequence[jax.ShapeDtypeStruct], platforms: Sequence[str],
                               log: Callable[[str], None]) -> tuple[jax.export.Exported | None, list[str]]:
  """Returns the program for all platforms on which it can be lowered, and these; (None, []) if there is none."""
  try:
    with _no_source_paths():
      return jax.export.export(search, platforms=platforms)(*shapes), list(platforms)
  except Exception as error:            # whatever a lowering rule raises
    if len(platforms) == 1:
      log(f"{platforms[0]} is left out: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
      return None, []
  working = [platform for platform in platforms
             if _export_for_most_platforms(search, shapes, [platform], log)[0] is not None]
  if working == list(platforms):        # each alone, but not together
    log(f"one program can't serve {', '.join(working)} together: it is for {working[0]} alone")
    working = working[:1]
  return _export_for_most_platforms(search, shapes, working, log) if working else (None, [])


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
  """Lets programs name the source of their operations by file name alone, without the folders of this machine."""
  before = jax.config.jax_hlo_source_file_canonicalization_regex  # pyright: ignore[reportAttributeAccessIssue]
  jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
  try:
    yield
  finally:
    jax.config.update("jax_hlo_source_file_canonicalization_regex", before)


def format_description(description: dict) -> str:
  """Returns the text of search.json."""
  return json.dumps(description, indent=1, ensure_ascii=False) + "\n"
