"""MCSAM: the whole network on one page.

    see       images            -> patches X_v                      (visual encoder, embeddings)
    remember  X_v, memory       -> responses R_v, consolidated X_v  (memory bank)
    encode    consolidated X_v  -> encoded patches                  (transformer)
    align     R_v; report's R_t -> codes s_v, s_t                   (semantic alignment; s_t in training only)
    write     words, memory, s_v, encoded patches -> logits         (report decoder)

Memory-based Cross-modal Semantic Alignment Network for Radiology Report
Generation (Tao, Ma, Yu, Zhang; arXiv 2404.00588). Sizes that the paper leaves
open are config fields. Without alignment and prompts, and with its norm, ReLU,
sinusoidal positions and position-aware queries, this is R2GenCMN (Chen et al.,
ACL 2021).

Shapes: B studies, V views, P patches a view, N = V * P patches, C channels,
T words, K beams, S slots, D width.
"""

from collections.abc import Sequence

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.dropout import Dropout
from mcsam_jax.models.memory_bank import MemoryBank
from mcsam_jax.models.report_decoder import ReportDecoder, Study
from mcsam_jax.models.semantic_alignment import Alignment, Pairs, ProjectionHead, SemanticAlignment
from mcsam_jax.models.text_encoder import TextEncoder
from mcsam_jax.models.visual_encoders.registry import make_encoder


@flax.struct.dataclass
class Encoded:
  """A study as the decoder reads it."""
  patches: jax.Array             # [B, N, D], encoded
  patch_mask: jax.Array          # [B, N], False where a view is absent
  image_embedding: jax.Array | None   # s_v [B, D]; None without alignment


@flax.struct.dataclass
class DecodeConstants:
  """What writing needs of the parameters alone, the same for all studies: made once for a checkpoint."""
  memory: layers.KeysValues | None    # slots, projected
  table: jax.Array | None             # responses to the vocabulary, see `word_responses`
  projections: Sequence[dict]         # of the decoder's layers, see `ReportDecoder.projections`


@flax.struct.dataclass
class DecodeContext:
  """What every word of a report needs of its study."""
  study: Study                        # patches and prompts, projected
  image_embedding: jax.Array | None        # s_v [B, D]
  image_conditioning: jax.Array | None        # what s_v adds to every word [B, D]


@flax.struct.dataclass
class Outputs:
  logits: jax.Array               # [B, T, vocabulary]
  image_embedding: jax.Array | None    # s_v [B, D]
  report_embedding: jax.Array | None   # s_t [B, D]


class MCSAM(nn.Module):
  """Chest X-rays of a study, and in training its report, to the report's words.

  Attributes:
    config: the config tree; `encoder`, `memory`, `model` and `train.compute_dtype` are read.
    vocab_size: of the tokenizer.
    max_length: T, the most words of a report, eos included.
    num_views: V.
    grid: rows and columns of patches that the encoder makes of one image.
  """
  config: FrozenConfigDict
  vocab_size: int
  max_length: int
  num_views: int
  grid: int

  def setup(self):
    model, memory = self.config.model, self.config.memory
    dtype = jnp.dtype(self.config.train.compute_dtype)
    sizes = {"width": model.width, "num_heads": model.num_heads, "dropout": model.dropout,
             "feedforward_width": model.feedforward_width, "norm": model.norm, "dtype": dtype,
             "remat": self.config.train.remat == "layers"}
    if not self.config.encoder.frozen:
      self.visual_encoder = make_encoder(self.config.encoder.name, dtype, remat=self.config.train.remat == "layers")
    self.patch_projection = nn.Dense(model.width, kernel_init=layers.xavier, dtype=dtype)
    if model.patch_positions == "learned":
      self.rows, self.columns, self.views = (
          nn.Embed(count, model.width, dtype=dtype, embedding_init=nn.initializers.normal(0.02))
          for count in (self.grid, self.grid, 3))
    self.words = nn.Embed(self.vocab_size, model.width, dtype=dtype)
    if model.word_positions == "learned":
      self.position_embedding = nn.Embed(self.max_length, model.width, dtype=dtype,
                                  embedding_init=nn.initializers.normal(0.02))
    if model.use_memory:
      self.memory_bank = MemoryBank(
          memory.num_slots, memory.slot_width, model.width, memory.num_heads, memory.top_k, memory.consolidation,
          model.dropout, dtype)
    self.encoder = layers.Encoder(model.encoder_layers, **sizes)
    if model.use_alignment:
      self.text_encoder = TextEncoder(model.text_encoder_layers, max_length=self.max_length, **sizes)
      self.image_head, self.report_head = ProjectionHead(model.width, dtype), ProjectionHead(model.width, dtype)
      self.alignment = SemanticAlignment(model.align_temperature, model.align_targets)
      self.conditioning_projection = nn.Dense(model.width, kernel_init=layers.xavier, dtype=dtype)
      self.conditioning_norm = layers.Norm(dtype=dtype)
      self.conditioning_gate = self.param("code_gate", nn.initializers.zeros, ())
    self.decoder = ReportDecoder(model.decoder_layers, vocab_size=self.vocab_size,
                                 num_memory_tokens=model.num_memory_tokens if model.use_memory_tokens else 0, **sizes)
    self.drop = Dropout(model.dropout)

  def __call__(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array, tokens: jax.Array,
               token_mask: jax.Array, train: bool) -> Outputs:
    """Reads studies and their reports: logits [B, T, vocabulary] and, with alignment, both codes [B, D].

    Args:
      images: normalised images [B, V, H, W, 3], or features [B, V, P, C] of a frozen encoder.
      view_mask: bool [B, V], False where a view is absent.
      view_ids: int [B, V]: 0 frontal, 1 lateral, 2 other.
      tokens: int [B, T + 1]: bos, words, eos, pad.
      token_mask: bool [B, T], True for tokens[:, 1:] up to and including eos.
      train: dropout, and batch statistics where they are trained.
    """
    memory = self.project_memory()
    encoded = self.encode(images, view_mask, view_ids, memory, train)
    words = self.embed_tokens(tokens[:, :-1], np.arange(tokens.shape[1] - 1), self.image_conditioning(encoded.image_embedding),
                             self.word_responses(memory, train), memory, train)
    logits = self.decoder(words, encoded.patches, encoded.patch_mask, train)
    report_embedding = self.encode_report(tokens[:, 1:], token_mask, memory, train)
    return Outputs(logits, encoded.image_embedding, report_embedding)

  # See, remember, encode.

  def see(self, images: jax.Array, train: bool) -> jax.Array:
    """Returns features [B, V, P, C] of images [B, V, H, W, 3]; features pass as they are."""
    if images.ndim == 4:
      return images
    flat = images.reshape(-1, *images.shape[2:])                               # [B*V, H, W, 3]
    features = self.visual_encoder(flat, train and self.config.encoder.train_batch_norm)
    return features.reshape(*images.shape[:2], -1, features.shape[-1])

  def encode(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array,
             memory: layers.KeysValues | None, train: bool) -> Encoded:
    """Returns the encoded patches of studies and, with alignment, their codes (arguments as in `__call__`)."""
    model = self.config.model
    images = jnp.where(jnp.expand_dims(view_mask, range(2, images.ndim)), images, 0)   # absent views say nothing
    patches = self.patch_projection(self.see(images, train).astype(self.patch_projection.dtype))   # [B, V, P, D]
    if model.patch_activation == "relu":
      patches = nn.relu(patches)
    if model.patch_positions == "learned":
      place = np.arange(self.grid)
      positions = self.rows(place)[:, None] + self.columns(place)[None, :]     # [grid, grid, D]
      patches += positions.reshape(-1, model.width) + self.views(view_ids)[:, :, None]
    num_patches = patches.shape[2]
    patches = self.drop(patches.reshape(patches.shape[0], -1, model.width), deterministic=not train)   # [B, N, D]
    mask = jnp.repeat(view_mask, num_patches, axis=1)                          # [B, N]
    recalled = patches
    if model.use_memory:
      responses = self.memory_bank(patches, memory, train)
      patches = self.memory_bank.consolidate(patches, responses)
      recalled = responses if model.align_on == "response" else patches
    image_embedding = self.image_head(recalled, mask) if model.use_alignment else None
    if model.patch_positions == "sinusoidal":
      patches = self.drop(patches + layers.sinusoidal_positions(*patches.shape[1:]).astype(patches.dtype),
                          deterministic=not train)
    return Encoded(self.encoder(patches, mask, train), mask, image_embedding)

  def project_memory(self) -> layers.KeysValues | None:
    """Returns keys [H, D/H, S] and values [H, S, D/H] of the memory for all queries; None without memory."""
    return self.memory_bank.project() if self.config.model.use_memory else None

  # Align.

  def encode_report(self, words: jax.Array, mask: jax.Array, memory: layers.KeysValues | None,
                    train: bool) -> jax.Array | None:
    """Returns what whole reports (words and mask [B, T]) recall, s_t [B, D]; only the loss sees it."""
    model = self.config.model
    if not model.use_alignment:
      return None
    states = self.text_encoder(self.words(words) * np.sqrt(model.width), mask, train)
    recalled = states
    if model.use_memory:
      responses = self.memory_bank(states, memory, train)
      recalled = responses if model.align_on == "response" else self.memory_bank.consolidate(states, responses)
    return self.report_head(recalled, mask)

  def align(self, image_embedding: jax.Array, report_embedding: jax.Array, pairs: Pairs) -> Alignment:
    """Returns the `Alignment` of the codes [B, D] of pairs (see SemanticAlignment)."""
    return self.alignment(image_embedding, report_embedding, pairs)

  def alignment_logits(self, image_embedding: jax.Array, report_embedding: jax.Array) -> jax.Array:
    """Returns the logits [B, R] of reports (codes [R, D] by `encode_report`) given images (codes [B, D])."""
    return self.alignment.logits(image_embedding, report_embedding)

  # Write.

  def word_responses(self, memory: layers.KeysValues | None, train: bool) -> jax.Array | None:
    """Returns the memory's response to every word of the vocabulary [vocabulary, D], where positions don't matter."""
    if not self.config.model.use_memory or self.config.memory.query != "word":
      return None
    vocabulary = self.words(jnp.arange(self.vocab_size)) * np.sqrt(self.config.model.width)
    return self.memory_bank(vocabulary, memory, train)

  def image_conditioning(self, image_embedding: jax.Array | None) -> jax.Array | None:
    """Returns what the image's code [B, D] adds to every word [B, D], through a gate that starts at zero."""
    if image_embedding is None:
      return None
    added = self.conditioning_norm(self.conditioning_projection(image_embedding))
    return self.conditioning_gate.astype(added.dtype) * added

  def embed_tokens(self, words: jax.Array, places: jax.Array, image_conditioning: jax.Array | None, table: jax.Array | None,
                  memory: layers.KeysValues | None, train: bool) -> jax.Array:
    """Returns decoder inputs [B, L, D] for words [B, L], the i-th at position places[i], or all at places[0].

    In training L is T; in `step` it is K, the beams' words at one position.

    Word (scaled by the root of D) + position, consolidated with the memory's
    response, plus what the image's code adds.
    """
    model = self.config.model
    if model.word_positions == "learned":
      positions = self.position_embedding(places)
    else:
      positions = jnp.asarray(layers.sinusoidal_positions(self.max_length + 1, model.width))[places]
    x = self.words(words) * np.sqrt(model.width) + positions.astype(self.words.dtype)
    x = self.drop(x, deterministic=not train)
    if model.use_memory:
      responses = self.memory_bank(x, memory, train) if table is None else jnp.take(table, words, axis=0)
      x = self.memory_bank.consolidate(x, responses)
    return x if image_conditioning is None else x + image_conditioning[:, None]

  def prepare(self) -> DecodeConstants:
    memory = self.project_memory()
    return DecodeConstants(memory, self.word_responses(memory, train=False), self.decoder.projections())

  def begin(self, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array, prepared: DecodeConstants) -> DecodeContext:
    """Returns what writing reports of B studies needs at every word (first arguments as in `__call__`)."""
    return self.begin_writing(self.encode(images, view_mask, view_ids, prepared.memory, train=False))

  def begin_writing(self, encoded: Encoded) -> DecodeContext:
    return DecodeContext(self.decoder.begin(encoded.patches, encoded.patch_mask), encoded.image_embedding,
                 self.image_conditioning(encoded.image_embedding))

  def init_cache(self, begun: DecodeContext, num_beams: int, exchange: bool = True) -> dict:
    """Returns the cache before the first word; `exchange`: beams may take each other's place (beam search)."""
    return self.decoder.init_cache(begun.study, num_beams, exchange)

  def grow(self, cache: dict, room: int) -> dict:
    """Returns the cache with room for `room` nodes, words of one or more beams; `init_cache` has none."""
    return self.decoder.grow(cache, room)

  def full(self, cache: dict) -> jax.Array:
    """Returns whether there is no room for the next word of each beam (bool scalar)."""
    return self.decoder.full(cache)

  def step(self, words: jax.Array, cache: dict, begun: DecodeContext, prepared: DecodeConstants) -> tuple[jax.Array, dict]:
    """Returns logits [B, K, vocabulary] after words [B, K], and the cache that holds them too."""
    place = cache["position"][None] - self.decoder.num_memory_tokens
    x = self.embed_tokens(words, place, begun.image_conditioning, prepared.table, prepared.memory, train=False)
    return self.decoder.step(x, cache, begun.study, prepared.projections)
