"""Counts the floating-point operations of a training step from the config.

Model FLOP utilization divides the operations that the *model* needs by what the chips could have done in the same time.
XLA's cost analysis of the program is no substitute: it counts rematerialized work twice, and the body of a loop once.

Matrix products and convolutions are counted, two operations per multiplication, on the full shapes: padded tokens,
absent views and both halves of causal attention are included, as in PaLM (Chowdhery et al., 2022). Norms, softmax and
the selection of slots are not.

Shapes: B studies, V views, N patches of a study, C channels, T tokens, M memory tokens, L = M + T, S slots, D width.
"""

import dataclasses

from ml_collections import ConfigDict

from mcsam_jax.models.visual_encoders.efficientnet import EfficientNetLite, STAGES
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder
from mcsam_jax.models.visual_encoders.resnet import Bottleneck

IMAGE_ENCODER, FIRST_CONVOLUTION, PATCHES = "image encoder", "first convolution", "patches"
UNUSED_SLOTS = "unused slots"     # products with the values of unselected slots: executed, but not needed


def train_flops(config: ConfigDict, vocab_size: int, batch_size: int | None = None) -> float:
  """Returns the operations that the model needs for one training step of the global batch.

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
  return sum(flops * (2 if part == first_layer else 3) for part, flops in parts.items() if part != UNUSED_SLOTS)


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
  patches = config.data.num_views * (config.data.image_size // ENCODERS[config.encoder.name].stride) ** 2
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
  model, memory, encoder_spec = config.model, config.memory, ENCODERS[config.encoder.name]
  width, tokens, images = model.width, config.tokenizer.max_length, batch_size * config.data.num_views
  patches = config.data.num_views * (config.data.image_size // encoder_spec.stride) ** 2
  memory_tokens = model.num_memory_tokens if model.use_memory_tokens else 0
  parts = {}
  if not config.encoder.frozen:
    convolutions = encoder_flops(config.encoder.name, config.data.image_size)
    parts[FIRST_CONVOLUTION] = images * convolutions[0]
    parts[IMAGE_ENCODER] = images * sum(convolutions[1:])
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
  length = memory_tokens + tokens
  cross = 2 * length * _dense(width, width) + 2 * patches * _dense(width, width) + _attention(length, patches, width)
  parts["decoder"] = batch_size * model.decoder_layers * (length * layer + _attention(length, length, width) + cross)
  parts["logits"] = batch_size * tokens * _dense(width, vocab_size)
  return parts


def encoder_flops(name: str, image_size: int) -> list[float]:
  """Returns the operations of each convolution for one image, in order, including those on padding."""
  encoder, stack = make_encoder(name), _Stack(image_size)
  if isinstance(encoder, EfficientNetLite):
    stack.convolve(3, 2, 32)
    for depth, kernel, stride, expansion, width in STAGES:
      for block in range(depth):
        hidden = expansion * stack.channels
        if expansion > 1:
          stack.convolve(1, 1, hidden)
        stack.convolve(kernel, stride if block == 0 else 1, hidden, groups=hidden)
        stack.convolve(1, 1, width)
    stack.convolve(1, 1, 1280)
    return stack.flops
  stack.convolve(7, encoder.stem_stride, encoder.stem_width)
  if encoder.stem_stride == 2:
    stack.size = -(-stack.size // 2)                                 # max pool
  for depth, width, stride in zip(encoder.depths, encoder.widths, encoder.strides):
    for block in range(depth):
      step, shortcut = stride if block == 0 else 1, dataclasses.replace(stack)    # shares the list `flops`
      if encoder.block is Bottleneck:
        stack.convolve(1, 1, width)
        stack.convolve(3, step, width)
        stack.convolve(1, 1, 4 * width)
      else:
        stack.convolve(3, step, width)
        stack.convolve(3, 1, width)
      if (shortcut.size, shortcut.channels) != (stack.size, stack.channels):
        shortcut.convolve(1, step, stack.channels)
  return stack.flops


@dataclasses.dataclass
class _Stack:
  """A sequence of convolutions over one square image."""
  size: int                                                          # pixels per side
  channels: int = 3
  flops: list[float] = dataclasses.field(default_factory=list)       # operations of each convolution so far

  def convolve(self, kernel: int, stride: int, channels: int, groups: int = 1) -> None:
    """Appends one convolution with padding `same`."""
    self.size = -(-self.size // stride)
    self.flops.append(self.size ** 2 * _dense(kernel ** 2 * self.channels // groups, channels))
    self.channels = channels


def _dense(inputs: int, outputs: int) -> int:
  """Returns the operations of multiplying one row by a matrix."""
  return 2 * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
  """Returns the operations of the scores and of the weighted sums of all heads together."""
  return 4 * queries * keys * width
