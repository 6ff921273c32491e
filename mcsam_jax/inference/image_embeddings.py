"""What a model itself makes of images, as one vector a study: by these too a nearest image is looked for."""

from collections.abc import Callable, Iterable
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.inference.load import LoadedModel
from mcsam_jax.models.inputs import visual_inputs


def make_image_embedder(member: LoadedModel, config: ConfigDict,
                    mesh: jax.sharding.Mesh) -> Callable[[Iterable[dict], int], np.ndarray]:
  """Returns a function of a split, compiled once: the encoded patches of each study, mean over the views that exist.

  It takes this host's rows of the batches of a split, as `eval_batches` gives them, and n, the studies of the split; it
  returns float32 [n, D] on all hosts. `member` is the model that looks.
  """
  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def pool(variables: dict, batch: dict) -> tuple[jax.Array, ...]:
    memory = member.model.apply(variables, method="project_memory")
    encoded = member.model.apply(variables, *visual_inputs(config, batch), memory, False, method="encode_images")
    shares = encoded.patch_mask / jnp.maximum(encoded.patch_mask.sum(-1, keepdims=True), 1)           # [B, N]
    return batch["record"], batch["valid"], jnp.einsum("bnd,bn->bd", encoded.patches.astype(jnp.float32), shares)

  def own_pooled(batches: Iterable[dict], count: int) -> np.ndarray:
    pooled = np.zeros((count, config.model.width), np.float32)
    shown = ({name: array for name, array in batch.items() if name != "tokens"} for batch in batches)   # no report
    for batch in shard_batches(mesh, shown):
      records, valid, vectors = jax.device_get(pool(member.variables, batch))
      pooled[records[valid]] = vectors[valid]
    return pooled
  return own_pooled
