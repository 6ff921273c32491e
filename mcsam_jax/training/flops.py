"""Counts the floating-point operations of a training step from the config.

Model FLOP utilization divides the operations that the *model* needs by what the chips could have done in the same time.
XLA's cost analysis of the program is no substitute: it counts rematerialized work twice, and the body of a loop once.

Matrix products and convolutions are counted, two operations per multiplication, on the full shapes: padded tokens,
absent views and both halves of causal attention are included, as in PaLM (Chowdhery et al., 2022). Norms, softmax and
the selection of slots are not.

Shapes: B studies, V views, N patches of a study, C channels, T tokens, M memory tokens (those of the findings
included), L = M + T, S slots, D width.
"""

import math

from ml_collections import ConfigDict

from mcsam_jax.findings import FINDINGS
from mcsam_jax.models.visual_encoders.encoder_flops import count_encoder_flops
from mcsam_jax.models.visual_encoders.registry import find_encoder, has_trained_encoder

IMAGE_ENCODER, FIRST_CONVOLUTION, PATCHES = "image encoder", "first convolution", "patches"
UNUSED_SLOTS = "unused slots"     # products with the values of unselected slots: executed, but not needed


def train_flops(config: ConfigDict, vocab_size: int, batch_size: int | None = None) -> float | None:
  """Returns the operations that the model needs for one training step of the global batch; None if unknown.

  The backward pass repeats each product of the forward pass twice, once for the gradient of either factor, except in
  the first trained layer, which needs no gradient of its input (images, or a frozen encoder's cached features, which
  cost nothing in a step). No frozen layer follows a trained one, so no layer needs only the gradient of its
  activations. Not counted is other work of a step: rematerialized activations, the gradients of single loss terms at
  logged steps, and products with slots whose weight is zero.

  Args:
    batch_size: number of studies B on all devices; None: that of the config.
  """
  parts = forward_flops(config, vocab_size, batch_size or config.train.batch_size)
  first_layer = FIRST_CONVOLUTION if FIRST_CONVOLUTION in parts else PATCHES
  total = sum(flops * (2 if part == first_layer else 3) for part, flops in parts.items() if part != UNUSED_SLOTS)
  return None if math.isnan(total) else total


def reward_flops(config: ConfigDict, vocab_size: int) -> float:
  """Returns the operations that the model needs for one step of reward fine-tuning (`train.objective=reward`).

  These are the forward pass that samples K reports per study, the forward and backward pass over the same reports,
  with one encoding per study, the forward pass of the start model if `reward.kl_weight` is set, and the step on the
  references if `reward.cross_entropy_weight` is. Both backward passes share the image encoder's.
  """
  model, options, batch_size = config.model, config.reward, config.train.batch_size
  num_samples = options.num_samples
  parts = forward_flops(config, vocab_size, batch_size)
  image_encoder = sum(parts.get(part, 0) for part in (IMAGE_ENCODER, FIRST_CONVOLUTION))
  patches = config.data.num_views * (config.data.image_size // find_encoder(config.encoder.name).stride) ** 2
  shared = batch_size * model.decoder_layers * 2 * patches * _dense(model.width, model.width)      # patch keys, values
  reports = num_samples * (parts["decoder"] + parts["logits"] - shared) + shared
  forward = parts[PATCHES] + parts["encoder"] + parts.get("memory", 0) + reports
  if options.cross_entropy_weight:
    update = train_flops(config, vocab_size)
  else:
    update = 3 * image_encoder - parts.get(FIRST_CONVOLUTION, 0)
  start_model = bool(options.kl_weight)
  return update + (1 + 3 + start_model) * forward + (1 + start_model) * image_encoder


def forward_flops(config: ConfigDict, vocab_size: int, batch_size: int) -> dict[str, float]:
  """Returns the operations of a forward pass over B studies and their reports, by part of the network."""
  model, memory, encoder_spec = config.model, config.memory, find_encoder(config.encoder.name)
  width, tokens, images = model.width, config.tokenizer.max_length, batch_size * config.data.num_views
  patches = config.data.num_views * (config.data.image_size // encoder_spec.stride) ** 2
  memory_tokens = model.num_memory_tokens if model.use_memory_tokens else 0
  parts = {}
  if has_trained_encoder(config):
    first, rest = count_encoder_flops(config.encoder.name, config.data.image_size, config.encoder.trained_stages)
    parts[FIRST_CONVOLUTION], parts[IMAGE_ENCODER] = images * first, images * rest
  parts[PATCHES] = batch_size * patches * _dense(encoder_spec.channels, width)

  if model.use_memory:
    queries = consolidated = batch_size * (patches + tokens)        # patches, and tokens at their positions
    if memory.query == "word":
      queries += vocab_size - batch_size * tokens                   # instead each token of the vocabulary, once
    if model.use_alignment:                                         # states of the text encoder
      queries += batch_size * tokens
      consolidated += batch_size * tokens * (model.align_on == "consolidated")
    top_k = min(memory.top_k, memory.num_slots)
    parts["memory"] = (2 * memory.num_slots * _dense(memory.slot_width, width)         # keys and values, once per step
                       + queries * (2 * _dense(width, width) + 2 * memory.num_slots * width + 2 * top_k * width))
    if memory.consolidation == "gate":
      parts["memory"] += consolidated * _dense(2 * width, width)
    parts[UNUSED_SLOTS] = queries * 2 * (memory.num_slots - top_k) * width

  layer = 4 * _dense(width, width) + 2 * _dense(width, model.feedforward_width)        # per position
  parts["encoder"] = batch_size * model.encoder_layers * (patches * layer + _attention(patches, patches, width))
  if model.use_alignment:
    parts["text encoder"] = batch_size * model.text_encoder_layers * (
        tokens * layer + _attention(tokens, tokens, width))
    parts["alignment"] = batch_size * (5 * _dense(width, width) + 2 * batch_size * width)   # two heads, conditioning
  if model.findings_head:
    inputs = 3 + model.use_alignment                                # maximum, mean, responses, image embedding
    parts["findings head"] = batch_size * (2 * patches * _dense(width, width) + _dense(inputs * width, len(FINDINGS)))
    memory_tokens += len(FINDINGS)
  length = memory_tokens + tokens
  cross = 2 * length * _dense(width, width) + 2 * patches * _dense(width, width) + _attention(length, patches, width)
  parts["decoder"] = batch_size * model.decoder_layers * (length * layer + _attention(length, length, width) + cross)
  parts["logits"] = batch_size * tokens * _dense(width, vocab_size)
  return parts


def _dense(inputs: int, outputs: int) -> int:
  """Returns the operations of multiplying one row by a matrix."""
  return 2 * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
  """Returns the operations of the scores and of the weighted sums of all heads together."""
  return 4 * queries * keys * width
