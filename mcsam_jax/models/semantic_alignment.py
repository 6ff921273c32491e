"""Keeps what an image and its report recall from the memory consistent.

Both are reduced to one code; codes of a pair are drawn together and those of
different pairs apart, over the whole global batch (under `jax.jit` a sharded
batch is one array, so the products below span all devices by themselves).
"""

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers

MAX_SCALE = 100.0   # of the logits; CLIP's bound (Radford et al., 2021)


@flax.struct.dataclass
class Alignment:
  loss: jax.Array         # scalar
  accuracy: jax.Array     # share of images whose most similar report carries target mass, scalar
  temperature: jax.Array  # scalar


class CodeHead(nn.Module):
  """Masked mean of recalled knowledge [B, L, D], then a two-layer MLP -> code [B, D]."""
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, recalled: jax.Array, mask: jax.Array) -> jax.Array:
    x = layers.masked_mean(recalled.astype(jnp.float32), mask).astype(self.dtype)
    x = nn.relu(nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="output")(x)


class SemanticAlignment(nn.Module):
  """Symmetric InfoNCE between image codes and report codes, with a learned temperature."""
  initial_temperature: float = 0.07

  def setup(self):
    self.log_scale = self.param("log_scale", nn.initializers.constant(-np.log(self.initial_temperature)), ())

  def logits(self, image_code: jax.Array, report_code: jax.Array) -> jax.Array:
    """Returns how well each image [B, D] and each report [R, D] agree [B, R]: cosines over the temperature.

    Their softmax over reports is what the loss below fits to the share of each report given the image (van den Oord
    et al., 2018): over the training reports it says which of them these images would have got.
    """
    return self.scale() * normalise(image_code) @ normalise(report_code).T

  def scale(self) -> jax.Array:
    return jnp.minimum(jnp.exp(self.log_scale), MAX_SCALE)

  def __call__(self, image_code: jax.Array, report_code: jax.Array, targets: jax.Array,
               valid: jax.Array) -> Alignment:
    """Aligns image and report codes [B, D].

    Args:
      targets: [B, B], symmetric; row i says how image i's mass is shared among reports.
      valid: bool [B]; rows that only pad a batch take no part.
    """
    logits = self.logits(image_code, report_code)                               # [B images, B reports]
    both = valid[:, None] & valid[None, :]
    logits = jnp.where(both, logits, -1e9)
    targets = jnp.where(both, targets, 0.0)
    losses = cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)  # [B]
    best = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], -1)[:, 0]
    hits = best >= targets.max(-1)
    count = jnp.maximum(valid.sum(), 1)
    return Alignment(loss=jnp.where(valid, losses, 0).sum() / (2 * count),
                     accuracy=(hits & valid).sum() / count, temperature=1 / self.scale())


def alignment_targets(kind: str, tokens: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns which reports [B, B] count as an image's own, each row summing to 1 (before padding is masked).

  Args:
    kind: `identity`; `same_text`: equal reports share their mass; `label_similarity`: softmax
      over the cosine of the 14 labels (soft targets of MedCLIP, Wang et al., EMNLP 2022).
    tokens: int [B, T], pad after the end.
    labels: float [B, 14], 1 where a finding is positive.
  """
  size = tokens.shape[0]
  if kind == "identity":
    return jnp.eye(size)
  if kind == "same_text":
    hashes = text_hash(tokens)
    same = (hashes[:, None] == hashes[None, :]).astype(jnp.float32)
    return same / same.sum(-1, keepdims=True)
  if kind == "label_similarity":
    labels = normalise(labels)
    return jax.nn.softmax(labels @ labels.T, axis=-1)
  raise ValueError(f"align_targets {kind}: identity, same_text or label_similarity")


def text_hash(tokens: jax.Array) -> jax.Array:
  """Returns uint32 [B], a polynomial hash of tokens [B, T]; comparing it costs B^2, not B^2 T."""
  powers = np.cumprod(np.full(tokens.shape[-1], 0x01000193, np.uint32), dtype=np.uint32)  # FNV's prime
  mixed = (tokens.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B1)
  mixed ^= mixed >> 15
  return (mixed * powers).sum(-1, dtype=jnp.uint32)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """[B, B] logits and target masses -> [B]; rows are normalised to mass 1."""
  targets /= jnp.maximum(targets.sum(-1, keepdims=True), 1e-9)
  return -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def normalise(code: jax.Array) -> jax.Array:
  """Returns code [..., D] in float32 at length 1 (0 stays 0, with a finite gradient)."""
  code = code.astype(jnp.float32)
  return code * jax.lax.rsqrt(jnp.square(code).sum(-1, keepdims=True) + 1e-12)
