"""Symmetric InfoNCE over all image-report pairs of the global batch, in blocks, with a hand-written gradient.

Each device compares its own images and reports with those of the whole batch, one block at a time, so no device ever
holds the matrix of all pairs (a quarter of a gigabyte at a batch of 8,192). Read top to bottom:

    ContrastiveTargets      per-study values that define the target distribution
    contrastive_loss        the losses of images and of reports, a `jax.custom_vjp`
    row_stats               one pass over the blocks: log-sum-exp and target sums of each row of logits
    contrastive_grad        another pass over the blocks: the gradient from these sums
    target_weights          the target distribution

Shapes: B studies of the global batch, C studies in a block, T tokens, D width.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax import partitioning
from mcsam_jax.models import layers

MAX_BLOCK_PAIRS = 2**23   # pairs that a device compares at once; on a pod, where each has few studies, this is all
MIN_LOGIT = -1e9          # below any logit, and finite, so that differences of two are


@flax.struct.dataclass
class ContrastiveTargets:
  """Per-study values that say which images and reports of a batch belong together."""
  text_hash: jax.Array    # uint32 [B, 2], `hash_tokens` of the report
  labels: jax.Array       # float [B, 14], 1 where a finding is positive
  index: jax.Array        # int32 [B], position in the batch
  valid: jax.Array        # bool [B]; rows that pad the batch are ignored

  @classmethod
  def create(cls, tokens: jax.Array, labels: jax.Array, valid: jax.Array) -> "ContrastiveTargets":
    """Returns the targets of B reports: tokens int [B, T], -1 after the end; labels [B, 14]; valid [B]."""
    return cls(hash_tokens(tokens), labels, jnp.arange(tokens.shape[0], dtype=jnp.int32), valid)


@flax.struct.dataclass
class RowStats:
  """Sums over the rows of logits of B embeddings against the whole batch, each [B]."""
  lse: jax.Array                             # logarithm of the sum of the logits' exponentials
  weighted_logit: jax.Array                  # sum of the logits, each times its target weight
  target_weight: jax.Array                   # sum of the target weights
  cotangent: jax.Array | None = None         # gradient of the final loss with respect to each row's cross-entropy


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def contrastive_loss(images: jax.Array, reports: jax.Array, targets: ContrastiveTargets, kind: str,
                     dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the cross-entropy of each image over all reports [B], of each report over all images [B], and hits [B].

  The cross-entropy of image i is -sum_j t_ij log softmax_j(image_i . report_j), where t_i are the target weights of
  the valid studies, normalized to sum 1. A hit is an image whose most similar report has the text of its own report.

  Devices exchange the embeddings once, and three numbers per study. Autodiff would gather the embeddings and then sum
  the gradients of all embeddings over all devices. But the gradient of one embedding only needs its own row of logits
  and the sums that the other devices found in their rows (`RowStats`): the logits of reports are those of images
  transposed, and so are the target weights.

  Args:
    images, reports: embeddings [B, D], split over devices; one of the two is multiplied by the logit scale.
    targets: of the same studies, split likewise.
    kind: the target distribution, see `target_weights`.
    dtype: type in which embeddings are exchanged and multiplied; sums are float32 or wider.
  """
  return _forward(images, reports, targets, kind, dtype)[0]


def _forward(images, reports, targets, kind, dtype):
  images, reports = images.astype(dtype), reports.astype(dtype)
  gathered = all_images, all_reports, all_targets = partitioning.replicate((images, reports, targets))
  image_stats, hits = row_stats(images, all_reports, targets, all_targets, kind)
  report_stats, _ = row_stats(reports, all_images, targets, all_targets, kind)
  losses = _cross_entropy(image_stats, targets.valid), _cross_entropy(report_stats, targets.valid), hits
  return losses, (images, reports, targets, gathered, image_stats, report_stats)


def _backward(kind, _, residuals, cotangents):
  images, reports, targets, (all_images, all_reports, all_targets), *stats = residuals
  image_stats, report_stats = (rows.replace(cotangent=jnp.where(targets.valid, cotangent, 0.0))
                               for rows, cotangent in zip(stats, cotangents))
  all_image_stats, all_report_stats = partitioning.replicate((image_stats, report_stats))
  return (contrastive_grad(images, all_reports, targets, all_targets, image_stats, all_report_stats, kind),
          contrastive_grad(reports, all_images, targets, all_targets, report_stats, all_image_stats, kind), None)


contrastive_loss.defvjp(_forward, _backward)


def _cross_entropy(rows: RowStats, valid: jax.Array) -> jax.Array:
  return jnp.where(valid, rows.lse - rows.weighted_logit / rows.target_weight, 0.0)


def row_stats(local: jax.Array, other: jax.Array, targets: ContrastiveTargets, all_targets: ContrastiveTargets,
              kind: str) -> tuple[RowStats, jax.Array]:
  """Returns the sums over each row of logits, and whether the most similar study has the same text [B].

  Args:
    local: embeddings [B, D] of one modality, split over devices like `targets`.
    other: embeddings [B, D] of the other modality, replicated on every device like `all_targets`.

  Maximum and sums are carried from block to block, as in online softmax (Milakov & Gimelshein, 2018).
  """
  def add_block(carry, block):
    other, columns = block                                                              # C studies
    logits = jnp.where(columns.valid, layers.qk_scores(local, other.T), -jnp.inf)       # [B, C]
    weights = jnp.where(columns.valid, target_weights(kind, targets, columns), 0.0)     # [B, C]
    best = logits.argmax(-1, keepdims=True)
    best_logit = jnp.take_along_axis(logits, best, -1)[:, 0]
    is_hit = jnp.take_along_axis(has_same_text(targets, columns), best, -1)[:, 0]
    max_logit = jnp.maximum(carry["max_logit"], best_logit)
    return {
        "max_logit": max_logit,
        "sum_exp": (carry["sum_exp"] * jnp.exp(carry["max_logit"] - max_logit)
                    + jnp.exp(logits - max_logit[:, None]).sum(-1)),
        "weighted_logit": carry["weighted_logit"] + (weights * jnp.where(columns.valid, logits, 0.0)).sum(-1),
        "target_weight": carry["target_weight"] + weights.sum(-1),
        "hit": jnp.where(best_logit > carry["max_logit"], is_hit, carry["hit"]),
    }, None

  zeros = jnp.zeros_like(local[:, 0], layers.at_least_float32(local).dtype)
  start = {"max_logit": jnp.full_like(zeros, MIN_LOGIT), "sum_exp": zeros, "weighted_logit": zeros,
           "target_weight": zeros, "hit": zeros > 0}
  sums, _ = jax.lax.scan(add_block, start, _split_into_blocks((other, all_targets)))
  return RowStats(lse=sums["max_logit"] + jnp.log(sums["sum_exp"]), weighted_logit=sums["weighted_logit"],
                  target_weight=jnp.maximum(sums["target_weight"], 1e-9)), sums["hit"]


def contrastive_grad(local: jax.Array, other: jax.Array, targets: ContrastiveTargets, all_targets: ContrastiveTargets,
                     rows: RowStats, columns: RowStats, kind: str) -> jax.Array:
  """Returns the gradient [B, D] of all cross-entropies with respect to the local embeddings.

  A logit is in two cross-entropies: that of its row, and that of its column, which is a row of the other modality. In
  each, its gradient is the softmax minus the target.

  Args:
    local, other, targets, all_targets: as in `row_stats`.
    rows: sums over the rows of the local embeddings, split over devices.
    columns: sums over the rows of the other modality, replicated on every device.
  """
  def add_block(grad, block):
    other, column_targets, columns = block                                              # C studies
    logits = layers.qk_scores(local, other.T)                                           # [B, C]
    weights = target_weights(kind, targets, column_targets)                             # [B, C]
    logit_grad = sum(stats.cotangent * (jnp.exp(logits - stats.lse) - weights / stats.target_weight)
                     for stats in (jax.tree.map(lambda leaf: leaf[:, None], rows), columns))
    logit_grad = jnp.where(targets.valid[:, None] & column_targets.valid, logit_grad, 0.0)
    return grad + layers.qk_scores(logit_grad, other), None

  start = jnp.zeros_like(local, layers.at_least_float32(local).dtype)
  return jax.lax.scan(add_block, start, _split_into_blocks((other, all_targets, columns)))[0]


def _split_into_blocks(tree):
  """Returns arrays [B, ...] as [blocks, C, ...], padded with zeros (not valid, where that is an array)."""
  def split(leaf):
    rows_per_device = -(-leaf.shape[0] // partitioning.num_batch_shards())
    size = min(max(MAX_BLOCK_PAIRS // rows_per_device, 1), leaf.shape[0])
    padded = jnp.pad(leaf, ((0, -leaf.shape[0] % size), *((0, 0),) * (leaf.ndim - 1)))
    return padded.reshape(-1, size, *leaf.shape[1:])
  return jax.tree.map(split, tree)


def target_weights(kind: str, rows: ContrastiveTargets, columns: ContrastiveTargets) -> jax.Array:
  """Returns the target weights [B, C] of C studies for each of B, up to a factor per row.

  Args:
    kind: `identity`: 1 for the study itself only; `same_text`: 1 for all studies with an equal report;
      `label_similarity`: the exponential of the cosine of the 14 labels (soft targets of MedCLIP, Wang et al., EMNLP
      2022).
    rows, columns: targets of B and of C studies.
  """
  if kind == "identity":
    return (rows.index[:, None] == columns.index).astype(jnp.float32)
  if kind == "same_text":
    return has_same_text(rows, columns).astype(jnp.float32)
  if kind == "label_similarity":
    return jnp.exp(l2_normalize(rows.labels) @ l2_normalize(columns.labels).T)
  raise ValueError(f"model.align_targets is {kind!r}, expected identity, same_text or label_similarity")


def has_same_text(rows: ContrastiveTargets, columns: ContrastiveTargets) -> jax.Array:
  """Returns bool [B, C]: whether the reports of B and of C studies are equal."""
  return (rows.text_hash[:, None] == columns.text_hash).all(-1)


def hash_tokens(tokens: jax.Array) -> jax.Array:
  """Returns uint32 [B, 2], two polynomial hashes of tokens [B, T]; comparing them costs B^2 operations, not B^2 T.

  The probability that two different reports of a batch of 8,192 have equal hashes is 2e-12.
  """
  primes = np.array([[0x01000193, 0x9E3779B1], [0x85EBCA6B, 0xC2B2AE35]], np.uint32)    # FNV's, Knuth's, MurmurHash3's
  hashes = []
  for base, spread in primes:
    powers = np.cumprod(np.full(tokens.shape[-1], base, np.uint32), dtype=np.uint32)
    mixed = (tokens.astype(jnp.uint32) + 1) * spread
    mixed ^= mixed >> 15
    hashes.append((mixed * powers).sum(-1, dtype=jnp.uint32))
  return jnp.stack(hashes, -1)


def l2_normalize(x: jax.Array) -> jax.Array:
  """Returns x [..., D] with length 1, in float32 or wider (0 stays 0, with a finite gradient)."""
  x = layers.at_least_float32(x)
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
