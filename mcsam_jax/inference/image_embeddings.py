"""One vector per study from a trained model's own encoder, for the nearest-neighbor baselines of evaluation.

Shapes: B studies of a batch, n studies of a split, N patches, D width.
"""

from collections.abc import Callable, Iterable
import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.inference.load import LoadedModel
from mcsam_jax.models.inputs import visual_inputs
from mcsam_jax.models.mcsam import EncodedImages


def make_image_embedder(loaded: LoadedModel, config: ConfigDict,
                        mesh: Mesh) -> Callable[[Iterable[dict], int], np.ndarray]:
  """Returns a function (batches, n) -> float32 [n, D] that averages the encoded patches of each study.

  The function is compiled once. It takes this host's rows of the batches of a split, as from `eval_batches`, and
  returns the vectors of all n studies on all hosts. Absent views do not count.
  """
  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def embed_batch(variables: dict, batch: dict) -> tuple[jax.Array, ...]:
    memory = loaded.model.apply(variables, method="project_memory")
    encoded = cast(EncodedImages, loaded.model.apply(variables, *visual_inputs(config, batch), memory, False,
                                                     method="encode_images"))
    weights = encoded.patch_mask / jnp.maximum(encoded.patch_mask.sum(-1, keepdims=True), 1)          # [B, N]
    return batch["record"], batch["valid"], jnp.einsum("bnd,bn->bd", encoded.patches.astype(jnp.float32), weights)

  def embed_split(batches: Iterable[dict], num_studies: int) -> np.ndarray:
    embeddings = np.zeros((num_studies, config.model.width), np.float32)
    without_reports = ({name: array for name, array in batch.items() if name != "tokens"} for batch in batches)
    for batch in shard_batches(mesh, without_reports):
      records, valid, vectors = jax.device_get(embed_batch(loaded.variables, batch))
      embeddings[records[valid]] = vectors[valid]
    return embeddings
  return embed_split
