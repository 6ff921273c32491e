"""Keeps what an image and its report recall from the memory consistent.

Both are reduced to one code; codes of a pair are drawn together and those of different pairs apart, over the whole
global batch. Each device compares its own images and reports with all others (their codes are gathered, B x D numbers),
a block of them at a time: no device holds the matrix of all pairs, a quarter of a gigabyte at a batch of 8,192.
"""

import functools

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax import partitioning
from mcsam_jax.models import layers

MAX_SCALE = 100.0   # of the logits; CLIP's bound (Radford et al., 2021)
MOST_PAIRS = 2**23  # that a device compares at once; on a pod, where each has few studies, that is all of them


@flax.struct.dataclass
class Alignment:
  loss: jax.Array         # scalar
  accuracy: jax.Array     # share of images whose most similar report has their own report's text, scalar
  temperature: jax.Array  # scalar


@flax.struct.dataclass
class Pairs:
  """What is known of B images and their reports beside their codes."""
  text: jax.Array         # uint32 [B, 2], `text_hash` of the report
  labels: jax.Array       # float [B, 14], 1 where a finding is positive
  number: jax.Array       # int32 [B], place in the batch
  valid: jax.Array        # bool [B]; rows that only pad a batch take no part


def make_pairs(tokens: jax.Array, labels: jax.Array, valid: jax.Array) -> Pairs:
  """Returns the pairs of reports with tokens int [B, T], -1 after the end; labels [B, 14], valid [B]."""
  return Pairs(text_hash(tokens), labels, jnp.arange(tokens.shape[0], dtype=jnp.int32), valid)


class ProjectionHead(nn.Module):
  """Masked mean of recalled knowledge [B, L, D], then a two-layer MLP -> code [B, D]."""
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, recalled: jax.Array, mask: jax.Array) -> jax.Array:
    x = layers.masked_mean(layers.at_least_float32(recalled), mask).astype(self.dtype)
    x = nn.relu(nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype, name="output")(x)


class SemanticAlignment(nn.Module):
  """Symmetric InfoNCE between image codes and report codes, with a learned temperature."""
  initial_temperature: float = 0.07
  targets: str = "same_text"      # see `target_mass`

  def setup(self):
    self.log_scale = self.param("log_scale", nn.initializers.constant(-np.log(self.initial_temperature)), ())

  def logits(self, image_embedding: jax.Array, report_embedding: jax.Array) -> jax.Array:
    """Returns how well each image [B, D] and each report [R, D] agree [B, R]: cosines over the temperature.

    Their softmax over reports is what the loss below fits to the share of each report given the image (van den Oord
    et al., 2018): over the training reports it says which of them these images would have got.
    """
    return self.scale() * normalise(image_embedding) @ normalise(report_embedding).T

  def scale(self) -> jax.Array:
    return jnp.minimum(jnp.exp(self.log_scale), MAX_SCALE)

  def __call__(self, image_embedding: jax.Array, report_embedding: jax.Array, pairs: Pairs) -> Alignment:
    """Aligns image and report codes [B, D] of `pairs`; codes of half precision are sent and multiplied in it."""
    scale, valid, dtype = self.scale(), pairs.valid, jnp.result_type(image_embedding, report_embedding)
    of_images, of_reports, hits = contrast(
        scale * normalise(image_embedding), normalise(report_embedding), pairs, self.targets, dtype)
    count = jnp.maximum(valid.sum(), 1)
    return Alignment(loss=jnp.where(valid, of_images + of_reports, 0).sum() / (2 * count),
                     accuracy=(hits & valid).sum() / count, temperature=1 / scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def contrast(images: jax.Array, reports: jax.Array, pairs: Pairs, targets: str,
             dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Compares all images with all reports by their codes [B, D], one of the two with the logits' scale in it.

  Returns the cross-entropy [B] of each image against the reports, that [B] of each report against the images, and
  whether the report that is most like an image has the text of its own [B]. An image's is
  -sum_j t_ij log softmax_j(image_i . report_j), where t_i is the target mass, brought to sum 1, of valid studies.

  What is sent are the codes, once, and three numbers a study. An autodiff of these losses would gather the codes and
  then sum the gradients of all codes over all devices. But the gradient of one code only needs its own row of logits
  and of what the others found in theirs (the logarithm and the mass below), as the logits of reports are those of
  images transposed, and so is the mass of targets.
  """
  losses, _ = contrast_forward(images, reports, pairs, targets, dtype)
  return losses


def contrast_forward(images, reports, pairs, targets, dtype):
  images, reports = images.astype(dtype), reports.astype(dtype)
  everyone = partitioning.replicate((images, reports, pairs))
  of_images, hits = compare(images, everyone[1], pairs, everyone[2], targets)
  of_reports, _ = compare(reports, everyone[0], pairs, everyone[2], targets)
  return (cross_entropy(of_images, pairs), cross_entropy(of_reports, pairs), hits), (
      images, reports, pairs, everyone, of_images, of_reports)


def contrast_backward(targets, _, kept, gradients):
  images, reports, pairs, (all_images, all_reports, everyone), of_images, of_reports = kept
  of_images, of_reports = (found.replace(gradient=jnp.where(pairs.valid, gradient, 0.0))
                           for found, gradient in zip((of_images, of_reports), gradients))
  all_of_images, all_of_reports = partitioning.replicate((of_images, of_reports))
  return (pull(images, all_reports, pairs, everyone, of_images, all_of_reports, targets),
          pull(reports, all_images, pairs, everyone, of_reports, all_of_images, targets), None)


contrast.defvjp(contrast_forward, contrast_backward)


@flax.struct.dataclass
class Rows:
  """What B codes found in their rows of logits."""
  logarithm: jax.Array     # of the sum of their exponentials [B]
  weighted: jax.Array      # their sum, each times its target mass [B]
  mass: jax.Array          # sum of the target mass [B]
  gradient: jax.Array | None = None   # of the loss, in each row's cross-entropy [B]


def cross_entropy(rows: Rows, pairs: Pairs) -> jax.Array:
  return jnp.where(pairs.valid, rows.logarithm - rows.weighted / rows.mass, 0.0)


def compare(own: jax.Array, others: jax.Array, pairs: Pairs, everyone: Pairs,
            targets: str) -> tuple[Rows, jax.Array]:
  """Returns what own codes found in their rows of logits, and whether the likeliest other has the same text [B].

  Args:
    own: codes [B, D], split over the devices like `pairs`.
    others: codes [B, D] of the other kind, whole on every device like `everyone`, their pairs.

  Maximum and sums are carried along from block to block (as in online softmax: Milakov & Gimelshein, 2018).
  """
  def add(seen, block):
    codes, theirs = block
    logits = jnp.where(theirs.valid, layers.products(own, codes.T), -jnp.inf)           # [B, block]
    mass = jnp.where(theirs.valid, target_mass(targets, pairs, theirs), 0.0)
    best = logits.argmax(-1, keepdims=True)
    best_logit = jnp.take_along_axis(logits, best, -1)[:, 0]
    same = jnp.take_along_axis(same_text(pairs, theirs), best, -1)[:, 0]
    highest = jnp.maximum(seen["highest"], best_logit)
    return {
        "highest": highest,
        "exponentials": (seen["exponentials"] * jnp.exp(seen["highest"] - highest)
                         + jnp.exp(logits - highest[:, None]).sum(-1)),
        "weighted": seen["weighted"] + (mass * jnp.where(theirs.valid, logits, 0.0)).sum(-1),
        "mass": seen["mass"] + mass.sum(-1),
        "hit": jnp.where(best_logit > seen["highest"], same, seen["hit"]),
    }, None

  zeros = jnp.zeros_like(own[:, 0], layers.at_least_float32(own).dtype)
  nothing = {"highest": jnp.full_like(zeros, LOWEST), "exponentials": zeros, "weighted": zeros, "mass": zeros,
             "hit": zeros > 0}
  seen, _ = jax.lax.scan(add, nothing, blocks_of((others, everyone)))
  return Rows(logarithm=seen["highest"] + jnp.log(seen["exponentials"]), weighted=seen["weighted"],
              mass=jnp.maximum(seen["mass"], 1e-9)), seen["hit"]


def pull(own: jax.Array, others: jax.Array, pairs: Pairs, everyone: Pairs, rows: Rows, columns: Rows,
         targets: str) -> jax.Array:
  """Returns the gradient [B, D] of own codes by all cross-entropies.

  A logit is in two of them: that of its row, and that of its column, which is a row of the other kind of codes. In each
  its gradient is the softmax less the target.

  Args:
    own, others, pairs, everyone: as in `compare`.
    rows, columns: what own codes and the others found in their rows, the second whole on every device.
  """
  def add(gradient, block):
    codes, theirs, columns = block
    logits = layers.products(own, codes.T)
    mass = target_mass(targets, pairs, theirs)
    of_logits = sum(found.gradient * (jnp.exp(logits - found.logarithm) - mass / found.mass)
                    for found in (jax.tree.map(lambda leaf: leaf[:, None], rows), columns))
    of_logits = jnp.where(pairs.valid[:, None] & theirs.valid, of_logits, 0.0)
    return gradient + layers.products(of_logits, codes), None

  nothing = jnp.zeros_like(own, layers.at_least_float32(own).dtype)
  return jax.lax.scan(add, nothing, blocks_of((others, everyone, columns)))[0]


LOWEST = -1e9       # below any logit, and finite, so that differences of two are


def blocks_of(tree):
  """Returns arrays [B, ...] as [blocks, size, ...], filled up with zeros (not valid, where that is an array)."""
  def block(leaf):
    own = -(-leaf.shape[0] // partitioning.batch_devices())                      # rows on a device
    size = min(max(MOST_PAIRS // own, 1), leaf.shape[0])
    filled = jnp.pad(leaf, ((0, -leaf.shape[0] % size), *((0, 0),) * (leaf.ndim - 1)))
    return filled.reshape(-1, size, *leaf.shape[1:])
  return jax.tree.map(block, tree)


def target_mass(kind: str, rows: Pairs, columns: Pairs) -> jax.Array:
  """Returns how strongly each of R rows and C columns belong together [R, C], up to a factor a row.

  Args:
    kind: `identity`: an image and its own report only; `same_text`: with all equal reports alike; `label_similarity`:
      the exponential of the cosine of the 14 labels (soft targets of MedCLIP, Wang et al., EMNLP 2022).
  """
  if kind == "identity":
    return (rows.number[:, None] == columns.number).astype(jnp.float32)
  if kind == "same_text":
    return same_text(rows, columns).astype(jnp.float32)
  if kind == "label_similarity":
    return jnp.exp(normalise(rows.labels) @ normalise(columns.labels).T)
  raise ValueError(f"align_targets {kind}: identity, same_text or label_similarity")


def same_text(rows: Pairs, columns: Pairs) -> jax.Array:
  """Returns bool [R, C]: whether two reports are equal."""
  return (rows.text[:, None] == columns.text).all(-1)


def text_hash(tokens: jax.Array) -> jax.Array:
  """Returns uint32 [B, 2], two polynomial hashes of tokens [B, T]; comparing them costs B^2, not B^2 T.

  Two different reports of a batch of 8,192 have equal hashes with a probability of 2e-12.
  """
  primes = np.array([[0x01000193, 0x9E3779B1], [0x85EBCA6B, 0xC2B2AE35]], np.uint32)      # FNV's, Knuth's, MurmurHash3's
  hashes = []
  for base, spread in primes:
    powers = np.cumprod(np.full(tokens.shape[-1], base, np.uint32), dtype=np.uint32)
    mixed = (tokens.astype(jnp.uint32) + 1) * spread
    mixed ^= mixed >> 15
    hashes.append((mixed * powers).sum(-1, dtype=jnp.uint32))
  return jnp.stack(hashes, -1)


def normalise(code: jax.Array) -> jax.Array:
  """Returns code [..., D] at length 1, in float32 or wider (0 stays 0, with a finite gradient)."""
  code = layers.at_least_float32(code)
  return code * jax.lax.rsqrt(jnp.square(code).sum(-1, keepdims=True) + 1e-12)
