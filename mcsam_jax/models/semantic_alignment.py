"""Semantic alignment: an image and its report should retrieve the same knowledge from the memory.

The text encoder reads a report so that it can query the memory like the image's patches. What each of the two retrieves
is reduced to one embedding; the embeddings of a pair are pulled together and those of different pairs pushed apart,
over the whole global batch (`contrastive.py`).

Shapes: B studies, R reports, T tokens, L positions (patches or tokens), D width.
"""

from typing import cast

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.contrastive import contrastive_loss, ContrastiveTargets, l2_normalize

MAX_LOGIT_SCALE = 100.0   # CLIP's bound (Radford et al., 2021)


@flax.struct.dataclass
class AlignmentOutput:
  """Scalars of one batch."""
  loss: jax.Array
  accuracy: jax.Array     # fraction of images whose most similar report has the text of their own report
  temperature: jax.Array


class TextEncoder(nn.Module):
  """Bidirectional transformer over the embedded tokens of whole reports: [B, T, D], mask [B, T] -> [B, T, D].

  Its states only query the memory for the report embedding; they never reach the decoder.
  """
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  max_length: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False             # see `layers.TransformerEncoder`

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    positions = self.param("position_embedding", nn.initializers.normal(0.02), (self.max_length, self.width))
    x = x + positions[:x.shape[1]].astype(self.dtype)
    return layers.TransformerEncoder(self.num_layers, self.width, self.num_heads, self.feedforward_width, self.dropout,
                                     self.norm, self.dtype, self.remat, name="encoder")(x, mask, train)


class ProjectionHead(nn.Module):
  """Masked mean of retrieved knowledge [B, L, D], then a two-layer MLP: an embedding [B, D]."""
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, retrieved: jax.Array, mask: jax.Array) -> jax.Array:
    x = layers.masked_mean(layers.at_least_float32(retrieved), mask).astype(self.dtype)
    x = nn.relu(nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="output")(x)


class SemanticAlignment(nn.Module):
  """Symmetric InfoNCE between image and report embeddings, with a learned temperature."""
  initial_temperature: float = 0.07
  targets: str = "same_text"      # see `contrastive.target_weights`

  def setup(self):
    self.log_scale = self.param("log_scale", nn.initializers.constant(-np.log(self.initial_temperature)), ())

  def logit_scale(self) -> jax.Array:
    """Returns the inverse temperature (scalar)."""
    return jnp.minimum(jnp.exp(self.log_scale), MAX_LOGIT_SCALE)

  def logits(self, image_embedding: jax.Array, report_embedding: jax.Array) -> jax.Array:
    """Returns the logits [B, R] of reports [R, D] given images [B, D]: cosine similarity over temperature.

    The loss fits their softmax over reports to the target weight of each report given the image (van den Oord et al.,
    2018): over the training reports, it estimates the probability that the image has each of them.
    """
    return self.logit_scale() * l2_normalize(image_embedding) @ l2_normalize(report_embedding).T

  def __call__(self, image_embedding: jax.Array, report_embedding: jax.Array,
               targets: ContrastiveTargets) -> AlignmentOutput:
    """Returns the loss of embeddings [B, D]; those of half precision are exchanged and multiplied in it."""
    scale, valid, dtype = self.logit_scale(), targets.valid, jnp.result_type(image_embedding, report_embedding)
    image_loss, report_loss, hits = cast(tuple[jax.Array, jax.Array, jax.Array], contrastive_loss(
        scale * l2_normalize(image_embedding), l2_normalize(report_embedding), targets, self.targets, dtype))
    count = jnp.maximum(valid.sum(), 1)
    return AlignmentOutput(loss=jnp.where(valid, image_loss + report_loss, 0).sum() / (2 * count),
                           accuracy=(hits & valid).sum() / count, temperature=1 / scale)
