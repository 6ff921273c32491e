"""Findings head: predicts the 14 findings of a study, and hands them to the decoder as memory tokens.

The head goes beyond the paper and is off by default (`model.findings_head`). A decoder trained on the likelihood of
tokens learns to write what most reports say; the head is trained on the findings themselves.

A nodule covers one patch, a large heart many. So the head looks for evidence in each patch by itself and reads its
maximum over the patches beside its mean.

Shapes: B studies, N patches, F findings, D width.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.models import layers
from mcsam_jax.models.dropout import Dropout

MAX_POSITIVE_WEIGHT = 50.0     # keeps a finding with a handful of positive labels from dominating the gradient


class FindingsHead(nn.Module):
  """Maps what the images show, and what the memory responds, to one logit per finding and one token per finding.

  The logits are balanced: the loss weighs positive labels by `positive_weight`, the ratio of negative to positive
  labels in the training split, so a logit of 0 means "as likely as on average". Training sets these weights at its
  start and never changes them. Subtracting their logarithm gives the logit of the probability.
  """
  width: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.norm_patches, self.norm_max, self.norm_mean, self.norm_responses, self.norm_embedding = (
        layers.LayerNorm(dtype=self.dtype) for _ in range(5))
    self.hidden, self.output = (nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype) for _ in range(2))
    self.logits = nn.Dense(len(FINDINGS), kernel_init=layers.xavier, dtype=self.dtype)
    self.positive_weight = self.param("positive_weight", nn.initializers.ones, (len(FINDINGS),))
    self.finding_embedding, self.balanced_embedding, self.probability_embedding = (
        self.param(name, nn.initializers.normal(1.0), (len(FINDINGS), self.width))
        for name in ("finding_embedding", "balanced_embedding", "probability_embedding"))
    self.drop = Dropout(self.dropout)

  def __call__(self, patches: jax.Array, responses: jax.Array, patch_mask: jax.Array,
               image_embedding: jax.Array | None, train: bool) -> jax.Array:
    """Returns balanced logits float32 [B, F].

    Args:
      patches: patches after they have queried the memory [B, N, D].
      responses: responses of the memory to them [B, N, D].
      patch_mask: bool [B, N], False where a view is absent.
      image_embedding: s_v [B, D]; None without alignment.
      train: whether to apply dropout.
    """
    evidence = patches + self.output(nn.relu(self.hidden(self.norm_patches(patches))))         # [B, N, D]
    evidence = layers.at_least_float32(evidence)
    x = [self.norm_max(layers.masked_max(evidence, patch_mask)),
         self.norm_mean(layers.masked_mean(evidence, patch_mask)),
         self.norm_responses(layers.masked_mean(layers.at_least_float32(responses), patch_mask))]
    if image_embedding is not None:
      x.append(self.norm_embedding(image_embedding))
    x = self.drop(jnp.concatenate(x, axis=-1), deterministic=not train)
    return layers.at_least_float32(self.logits(x))

  def probabilities(self, logits: jax.Array) -> jax.Array:
    """Returns the probability [B, F] of each finding for balanced logits [B, F]."""
    return nn.sigmoid(logits - jnp.log(self.positive_weight))

  def make_tokens(self, logits: jax.Array) -> jax.Array:
    """Returns memory tokens [B, F, D] that carry the balanced logits [B, F] to the decoder.

    A token says two things, each from -1 to 1: whether the finding is more likely than on average, which tells apart
    the probabilities of a rare finding, and whether it is more likely than not, which decides what to write. The
    decoder's gradient doesn't reach the logits, which would otherwise drift from what the labels say.
    """
    logits = jax.lax.stop_gradient(logits)
    balanced, probability = (2 * p[..., None] - 1 for p in (nn.sigmoid(logits), self.probabilities(logits)))
    return (self.finding_embedding + balanced * self.balanced_embedding
            + probability * self.probability_embedding).astype(self.dtype)

  def loss(self, logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the sum over studies of the class-balanced binary cross-entropy, mean over findings (scalar).

    Args:
      logits: balanced logits [B, F].
      labels: int8 [B, F], index in LABEL_VALUES. Uncertain labels don't count; absent ones count as negative.
      valid: bool [B].
    """
    positive = (labels == LABEL_VALUES.index("positive")).astype(logits.dtype)
    counts = valid[:, None] & (labels != LABEL_VALUES.index("uncertain"))
    weight = jax.lax.stop_gradient(self.positive_weight).astype(logits.dtype)
    losses = -(weight * positive * nn.log_sigmoid(logits) + (1 - positive) * nn.log_sigmoid(-logits))
    # Scaled so that every finding has the mean weight 1, however rare it is.
    rate = 1 / (1 + weight)
    return (jnp.where(counts, losses, 0) / (2 * (1 - rate))).mean(-1).sum()


def compute_positive_weights(labels: np.ndarray) -> np.ndarray:
  """Returns the ratio of negative to positive labels of each finding, float32 [F], from 1 / 50 to 50.

  Args:
    labels: int8 [n, F], index in LABEL_VALUES. Uncertain labels don't count; absent ones count as negative.
  """
  positive = (labels == LABEL_VALUES.index("positive")).sum(0)
  negative = (labels != LABEL_VALUES.index("uncertain")).sum(0) - positive
  ratio = negative / np.maximum(positive, 1)
  return np.clip(ratio, 1 / MAX_POSITIVE_WEIGHT, MAX_POSITIVE_WEIGHT).astype(np.float32)
