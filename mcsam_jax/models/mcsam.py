"""MCSAM: the whole network on one page.

    encode_images   images -> patches -> memory responses R_v -> encoded patches, image embedding s_v
    encode_report   report tokens -> text encoder -> memory responses R_t -> report embedding s_t
    findings_head   patches, R_v, s_v -> findings -> memory tokens of the decoder (not of the paper; off by default)
    embed_tokens    tokens + positions -> + memory responses + gated s_v -> decoder inputs
    decoder         decoder inputs, encoded patches -> logits
    align           s_v, s_t of the whole batch -> contrastive loss

Training runs `__call__` on whole reports. It runs all of these but `align`, which the training step calls, because the
contrastive loss spans all microbatches. Generation computes `make_decode_constants` once per checkpoint and
`prefill` once per study, then calls `decode_step` for each token, with the cache of `decode_cache.py`.

Memory-based Cross-modal Semantic Alignment Network for Radiology Report Generation (Tao, Ma, Yu, Zhang; arXiv
2404.00588). Sizes that the paper leaves open are config fields. This is R2GenCMN (Chen et al., ACL 2021) if alignment
and memory tokens are off and its norm, ReLU, sinusoidal positions and `memory.query=word_position` are on.

Shapes: B studies, V views, I input channels, P patches per view, N = V * P patches of a study, C channels, T tokens of
a report, L tokens or patches of one call, K beams or samples, S memory slots, F findings, H heads, D width.
"""

import functools

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.contrastive import ContrastiveTargets
from mcsam_jax.models.decode_cache import StudyKV
from mcsam_jax.models.dropout import Dropout
from mcsam_jax.models.findings_head import FindingsHead
from mcsam_jax.models.memory_bank import MemoryBank
from mcsam_jax.models.report_decoder import DecoderStepWeights, ReportDecoder
from mcsam_jax.models.semantic_alignment import AlignmentOutput, ProjectionHead, SemanticAlignment, TextEncoder
from mcsam_jax.models.visual_encoders.registry import has_trained_encoder, make_trained_stages

NUM_VIEW_IDS = 3   # frontal, lateral, other


@flax.struct.dataclass
class EncodedImages:
  """The images of B studies as the decoder reads them."""
  patches: jax.Array                      # encoded [B, N, D]
  patch_mask: jax.Array                   # bool [B, N], False where a view is absent
  image_embedding: jax.Array | None       # s_v [B, D]; None without alignment
  finding_logits: jax.Array | None        # [B, F], see `FindingsHead`; None without findings head


@flax.struct.dataclass
class ModelOutputs:
  """Outputs of the forward pass for B studies and their reports."""
  logits: jax.Array                       # [B, T, vocabulary]
  image_embedding: jax.Array | None       # s_v [B, D]; None without alignment
  report_embedding: jax.Array | None      # s_t [B, D]; None without alignment
  finding_logits: jax.Array | None = None # [B, F], see `FindingsHead`; None without findings head


@flax.struct.dataclass
class DecodeConstants:
  """Parameter-only values shared by all decode steps; computed once per checkpoint."""
  memory: layers.KeysValues | None                # keys and values of the memory slots
  vocabulary_responses: jax.Array | None          # [vocabulary, D], see `MCSAM.vocabulary_responses`
  decoder_weights: DecoderStepWeights             # see `ReportDecoder.step_weights`


@flax.struct.dataclass
class DecodeContext:
  """Per-study values that stay constant across decode steps."""
  study_kv: StudyKV                       # keys and values of patches and memory tokens
  image_embedding: jax.Array | None       # s_v [B, D]
  image_conditioning: jax.Array | None    # [B, D], added to the embedding of every token
  finding_probs: jax.Array | None         # [B, F], by the findings head


class MCSAM(nn.Module):
  """Maps the chest X-rays of a study, and in training its report, to next-token logits at every position of the report.

  Attributes:
    config: the config tree; `encoder`, `memory`, `model`, `train.compute_dtype` and `train.remat` are read.
    vocab_size: number of tokens of the tokenizer.
    max_length: T, the maximum number of tokens in a report, eos included.
    num_views: V.
    grid: rows (and columns) of patches that the visual encoder makes of one image; P = grid * grid.
  """
  config: FrozenConfigDict
  vocab_size: int
  max_length: int
  num_views: int
  grid: int

  def setup(self):
    model, memory = self.config.model, self.config.memory
    dtype = jnp.dtype(self.config.train.compute_dtype)
    remat = self.config.train.remat == "layers"
    sizes = {"width": model.width, "num_heads": model.num_heads, "feedforward_width": model.feedforward_width,
             "dropout": model.dropout, "norm": model.norm, "dtype": dtype, "remat": remat}
    dense = functools.partial(nn.Dense, model.width, kernel_init=layers.xavier, dtype=dtype)
    position_embedding = functools.partial(nn.Embed, features=model.width, dtype=dtype,
                                           embedding_init=nn.initializers.normal(0.02))
    # Images.
    if has_trained_encoder(self.config):
      self.visual_encoder = make_trained_stages(self.config, dtype, remat)
    self.patch_projection = dense()
    if model.patch_positions == "learned":
      self.row_embedding = position_embedding(self.grid)
      self.column_embedding = position_embedding(self.grid)
      self.view_embedding = position_embedding(NUM_VIEW_IDS)
    self.patch_encoder = layers.TransformerEncoder(model.encoder_layers, **sizes)
    # Memory, shared by patches and tokens.
    if model.use_memory:
      self.memory_bank = MemoryBank(memory.num_slots, memory.slot_width, model.width, memory.num_heads, memory.top_k,
                                    memory.consolidation, model.dropout, dtype)
    # Alignment of images and reports.
    if model.use_alignment:
      self.text_encoder = TextEncoder(model.text_encoder_layers, max_length=self.max_length, **sizes)
      self.image_head = ProjectionHead(model.width, dtype)
      self.report_head = ProjectionHead(model.width, dtype)
      self.alignment = SemanticAlignment(model.align_temperature, model.align_targets)
      self.conditioning_projection = dense()
      self.conditioning_norm = layers.LayerNorm(dtype=dtype)
      self.conditioning_gate = self.param("conditioning_gate", nn.initializers.zeros, ())
    # Findings.
    if model.findings_head:
      self.findings_head = FindingsHead(model.width, model.dropout, dtype)
    # Report.
    self.token_embedding = nn.Embed(self.vocab_size, model.width, dtype=dtype)
    if model.word_positions == "learned":
      self.position_embedding = position_embedding(self.max_length)
    self.decoder = ReportDecoder(model.decoder_layers, vocab_size=self.vocab_size,
                                 num_memory_tokens=model.num_memory_tokens if model.use_memory_tokens else 0, **sizes)
    self.drop = Dropout(model.dropout)

  def __call__(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array, tokens: jax.Array,
               token_mask: jax.Array, train: bool) -> ModelOutputs:
    """Returns the logits of whole reports and, with alignment, the embeddings of images and reports.

    Args:
      images: normalized images [B, V, height, width, I], or outputs of frozen stages [B, V, h, w, C], which the
        trained stages follow, or features [B, V, P, C] of a frozen encoder.
      view_mask: bool [B, V], False where a view is absent.
      view_ids: int [B, V]: 0 frontal, 1 lateral, 2 other.
      tokens: int [B, T + 1]: bos, the report's tokens, eos, padding.
      token_mask: bool [B, T], True for tokens[:, 1:] up to and including eos.
      train: whether to apply dropout and, with `encoder.train_batch_norm`, update the batch statistics.
    """
    memory = self.project_memory()
    encoded = self.encode_images(images, view_mask, view_ids, memory, train)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = self.embed_tokens(inputs, np.arange(inputs.shape[1]), self.image_conditioning(encoded.image_embedding),
                          self.vocabulary_responses(memory, train), memory, train)     # [B, T, D]
    logits = self.decoder(x, encoded.patches, encoded.patch_mask, self.finding_tokens(encoded), train)
    report_embedding = self.encode_report(targets, token_mask, memory, train)
    return ModelOutputs(logits, encoded.image_embedding, report_embedding, encoded.finding_logits)

  # Encoding.

  def project_memory(self) -> layers.KeysValues | None:
    """Returns keys [H, D/H, S] and values [H, S, D/H] of the memory slots; None without memory."""
    return self.memory_bank.project_slots() if self.config.model.use_memory else None

  def encode_images(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array,
                    memory: layers.KeysValues | None, train: bool) -> EncodedImages:
    """Returns the encoded patches, the image embeddings and the logits of findings.

    The arguments are those of `__call__`, and `memory` from `project_memory`.
    """
    model = self.config.model
    patches = self.embed_patches(images, view_mask, view_ids, train)           # [B, N, D]
    patch_mask = jnp.repeat(view_mask, patches.shape[1] // view_mask.shape[1], axis=1)   # [B, N]
    patches, retrieved = self.query_memory(patches, memory, train)
    image_embedding = self.image_head(retrieved, patch_mask) if model.use_alignment else None
    finding_logits = (self.findings_head(patches, retrieved, patch_mask, image_embedding, train)
                      if model.findings_head else None)
    if model.patch_positions == "sinusoidal":
      positions = layers.sinusoidal_positions(*patches.shape[1:]).astype(patches.dtype)
      patches = self.drop(patches + positions, deterministic=not train)
    return EncodedImages(self.patch_encoder(patches, patch_mask, train), patch_mask, image_embedding, finding_logits)

  def encode_report(self, tokens: jax.Array, token_mask: jax.Array, memory: layers.KeysValues | None,
                    train: bool) -> jax.Array | None:
    """Returns s_t [B, D] of reports given without bos (tokens, mask [B, T]); None without alignment."""
    if not self.config.model.use_alignment:
      return None
    states = self.text_encoder(self.scaled_embedding(tokens), token_mask, train)
    _, retrieved = self.query_memory(states, memory, train)
    return self.report_head(retrieved, token_mask)

  def embed_patches(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array, train: bool) -> jax.Array:
    """Returns the patches of all views of a study [B, N, D] before they query the memory."""
    model = self.config.model
    # Zero absent views, whatever they contain.
    images = jnp.where(jnp.expand_dims(view_mask, range(2, images.ndim)), images, 0)
    features = self.extract_features(images, train)                            # [B, V, P, C]
    patches = self.patch_projection(features.astype(self.patch_projection.dtype))
    if model.patch_activation == "relu":
      patches = nn.relu(patches)
    if model.patch_positions == "learned":
      index = np.arange(self.grid)
      positions = self.row_embedding(index)[:, None] + self.column_embedding(index)[None, :]   # [grid, grid, D]
      patches += positions.reshape(-1, model.width) + self.view_embedding(view_ids)[:, :, None]
    return self.drop(patches.reshape(patches.shape[0], -1, model.width), deterministic=not train)

  def extract_features(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns the visual encoder's features [B, V, P, C]; returns features of a frozen encoder unchanged."""
    if images.ndim == 4:   # already features of a frozen encoder [B, V, P, C]
      return images
    flat = images.reshape(-1, *images.shape[2:])                               # [B*V, height, width, I]
    features = self.visual_encoder(flat, train and self.config.encoder.train_batch_norm)
    return features.reshape(*images.shape[:2], -1, features.shape[-1])

  def query_memory(self, x: jax.Array, memory: layers.KeysValues | None, train: bool) -> tuple[jax.Array, jax.Array]:
    """Returns (x plus memory responses, the representation that alignment compares), both [B, L, D] like x.

    Alignment compares the responses (`align_on=response`) or x plus the responses; without memory, x itself.
    """
    if memory is None:
      return x, x
    responses = self.memory_bank(x, memory, train)
    consolidated = self.memory_bank.consolidate(x, responses)
    return consolidated, responses if self.config.model.align_on == "response" else consolidated

  # Alignment.

  def align(self, image_embedding: jax.Array, report_embedding: jax.Array,
            targets: ContrastiveTargets) -> AlignmentOutput:
    """Returns the contrastive loss of image and report embeddings [B, D], over the whole batch."""
    return self.alignment(image_embedding, report_embedding, targets)

  def alignment_logits(self, image_embedding: jax.Array, report_embedding: jax.Array) -> jax.Array:
    """Returns the logits [B, R] of R reports (embeddings [R, D]) for each image (embeddings [B, D])."""
    return self.alignment.logits(image_embedding, report_embedding)

  # Findings.

  def finding_tokens(self, encoded: EncodedImages) -> jax.Array | None:
    """Returns the decoder's memory tokens of the findings [B, F, D]; None without findings head."""
    return None if encoded.finding_logits is None else self.findings_head.make_tokens(encoded.finding_logits)

  def finding_loss(self, finding_logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the sum over studies of the findings loss; see `FindingsHead.loss`."""
    return self.findings_head.loss(finding_logits, labels, valid)

  # Decoder inputs.

  def scaled_embedding(self, tokens: jax.Array) -> jax.Array:
    """Returns token embeddings [..., D] times the square root of D (Vaswani et al., 2017)."""
    return self.token_embedding(tokens) * np.sqrt(self.config.model.width)

  def vocabulary_responses(self, memory: layers.KeysValues | None, train: bool) -> jax.Array | None:
    """Returns the memory responses for every token of the vocabulary [vocabulary, D]; None unless `memory.query=word`.

    A query without its position depends only on the token, so one table serves all positions of all reports. In
    training, all occurrences of a token therefore share the table's dropout mask.
    """
    if memory is None or self.config.memory.query != "word":
      return None
    return self.memory_bank(self.scaled_embedding(jnp.arange(self.vocab_size)), memory, train)

  def image_conditioning(self, image_embedding: jax.Array | None) -> jax.Array | None:
    """Returns what the image embedding [B, D] adds to every token [B, D], through a gate that starts at zero."""
    if image_embedding is None:
      return None
    conditioning = self.conditioning_norm(self.conditioning_projection(image_embedding))
    return self.conditioning_gate.astype(conditioning.dtype) * conditioning

  def embed_tokens(self, tokens: jax.Array, positions: jax.Array | np.ndarray, image_conditioning: jax.Array | None,
                   vocabulary_responses: jax.Array | None, memory: layers.KeysValues | None,
                   train: bool) -> jax.Array:
    """Returns decoder inputs [B, L, D]: token + position, consolidated with the memory, plus image conditioning.

    Args:
      tokens: int [B, L]. L is T in training; in `decode_step` it is K, one token per beam, all at the same position.
      positions: int [L], or [1] if all tokens are at the same position.
      image_conditioning: [B, D], see `image_conditioning`; None adds nothing.
      vocabulary_responses: [vocabulary, D], see `vocabulary_responses`; if None, the tokens query the memory here.
      memory: keys and values of the memory slots; None without memory.
      train: whether to apply dropout.
    """
    model = self.config.model
    if model.word_positions == "learned":
      position_embedding = self.position_embedding(positions)
    else:
      # The rows of positions 0, ..., T - 1 and a spare one.
      position_embedding = jnp.asarray(layers.sinusoidal_positions(self.max_length + 1, model.width))[positions]
    x = self.scaled_embedding(tokens) + position_embedding.astype(self.token_embedding.dtype)
    x = self.drop(x, deterministic=not train)
    if memory is not None:
      responses = (self.memory_bank(x, memory, train) if vocabulary_responses is None
                   else jnp.take(vocabulary_responses, tokens, axis=0))
      x = self.memory_bank.consolidate(x, responses)
    return x if image_conditioning is None else x + image_conditioning[:, None]

  def read_reports(self, tokens: jax.Array, context: DecodeContext, constants: DecodeConstants) -> jax.Array:
    """Returns the logits [B, K, T, vocabulary] after each of the tokens [B, K, T] of K reports per study; no dropout.

    They are those of `decode_step`, for whole reports at once: a study is encoded once for all its reports.
    """
    batch_size, num_reports, length = tokens.shape
    x = self.embed_tokens(tokens.reshape(batch_size, -1), np.tile(np.arange(length), num_reports),
                          context.image_conditioning, constants.vocabulary_responses, constants.memory, train=False)
    return self.decoder.read_reports(x.reshape(*tokens.shape, -1), context.study_kv)

  # Decoding, one token at a time.

  def make_decode_constants(self) -> DecodeConstants:
    """Returns the values that depend on the parameters alone; compute them once per checkpoint."""
    memory = self.project_memory()
    return DecodeConstants(memory, self.vocabulary_responses(memory, train=False), self.decoder.step_weights())

  def prefill(self, encoded: EncodedImages) -> DecodeContext:
    """Returns the per-study values that all decode steps share."""
    finding_probs = (None if encoded.finding_logits is None
                     else self.findings_head.probabilities(encoded.finding_logits))
    return DecodeContext(
        self.decoder.project_study(encoded.patches, encoded.patch_mask, self.finding_tokens(encoded)),
        encoded.image_embedding, self.image_conditioning(encoded.image_embedding), finding_probs)

  def decode_step(self, tokens: jax.Array, cache: dict, context: DecodeContext,
                  constants: DecodeConstants) -> tuple[jax.Array, dict]:
    """Returns the logits [B, K, vocabulary] of the token after `tokens` [B, K], and the updated cache."""
    position = cache["position"][None] - context.study_kv.num_memory_tokens
    x = self.embed_tokens(tokens, position, context.image_conditioning, constants.vocabulary_responses,
                          constants.memory, train=False)
    return self.decoder.decode_step(x, cache, context.study_kv, constants.decoder_weights)
