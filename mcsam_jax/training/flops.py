"""How many floating-point operations a training step needs, counted from the config.

Model FLOP utilisation divides what the *model* needs by what the chips could do meanwhile. What a program happens to
execute is no substitute: XLA's cost analysis counts work that rematerialisation does twice, and the body of a loop
once. Counted are products of matrices and convolutions, two operations a multiplication, on shapes as they are: padded
words, absent views and both halves of causal attention are part of them (as PaLM counts, Chowdhery et al., 2022).
Norms, softmax and the choice of slots are not.

Shapes: B studies, V views, N patches of a study, C channels, T words, N_p prompts, L = N_p + T, S slots, D width.
"""

import dataclasses

from ml_collections import ConfigDict

from mcsam_jax.models.visual_encoders.efficientnet import EfficientNetLite, STAGES
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder
from mcsam_jax.models.visual_encoders.resnet import Bottleneck

IMAGE_ENCODER, FIRST_CONVOLUTION, PATCHES = "image encoder", "first convolution", "patches"
UNUSED_SLOTS = "unused slots"     # the products with the values of slots that no query kept: done, not needed


def train_flops(config: ConfigDict, vocab_size: int, batch_size: int | None = None) -> float:
  """Returns the operations that one training step of the global batch needs.

  The backward pass does each product of the forward pass twice more: once for the gradient of either factor. Two
  exceptions: the first layer that is trained needs no gradient of what it reads (images, or a frozen encoder's cached
  features, which cost nothing in a step). Nothing frozen stands above anything trained, so no part has the gradient of
  its activations alone. What else a step may do doesn't count: activations computed again, the alignment's gradient
  taken alone for the log, slots that are multiplied by a weight of zero.

  Args:
    batch_size: B, studies over all devices; None: of the config.
  """
  parts = forward_flops(config, vocab_size, batch_size or config.train.batch_size)
  first = FIRST_CONVOLUTION if FIRST_CONVOLUTION in parts else PATCHES
  return sum(flops * (2 if part == first else 3) for part, flops in parts.items() if part != UNUSED_SLOTS)


def forward_flops(config: ConfigDict, vocab_size: int, batch_size: int) -> dict[str, float]:
  """Returns the operations of a forward pass over B studies and their reports, by part of the network."""
  model, memory, info = config.model, config.memory, ENCODERS[config.encoder.name]
  width, words, images = model.width, config.tokenizer.max_length, batch_size * config.data.num_views
  patches = config.data.num_views * (config.data.image_size // info.stride) ** 2
  prompts = model.num_memory_tokens if model.use_memory_tokens else 0
  parts = {}
  if not config.encoder.frozen:
    convolutions = encoder_flops(config.encoder.name, config.data.image_size)
    parts[FIRST_CONVOLUTION] = images * convolutions[0]
    parts[IMAGE_ENCODER] = images * sum(convolutions[1:])
  parts[PATCHES] = batch_size * patches * _dense(info.channels, width)

  if model.use_memory:
    queries = consolidated = batch_size * (patches + words)         # patches, and words at their places
    if memory.query == "word":
      queries += vocab_size - batch_size * words                    # each word of the vocabulary instead, once
    if model.use_alignment:                                         # the text encoder's states
      queries += batch_size * words
      consolidated += batch_size * words * (model.align_on == "consolidated")
    kept = min(memory.top_k, memory.num_slots)
    parts["memory"] = (2 * memory.num_slots * _dense(memory.slot_width, width)         # keys and values, once a step
                       + queries * (2 * _dense(width, width) + 2 * memory.num_slots * width + 2 * kept * width))
    if memory.consolidation == "gate":
      parts["memory"] += consolidated * _dense(2 * width, width)
    parts[UNUSED_SLOTS] = queries * 2 * (memory.num_slots - kept) * width

  layer = 4 * _dense(width, width) + 2 * _dense(width, model.feedforward_width)        # of one position
  parts["encoder"] = batch_size * model.encoder_layers * (patches * layer + _attention(patches, patches, width))
  if model.use_alignment:
    parts["text encoder"] = batch_size * model.text_encoder_layers * (words * layer + _attention(words, words, width))
    parts["alignment"] = batch_size * (5 * _dense(width, width) + 2 * batch_size * width)   # two heads, s_v as input
  length = prompts + words
  cross = 2 * length * _dense(width, width) + 2 * patches * _dense(width, width) + _attention(length, patches, width)
  parts["decoder"] = batch_size * model.decoder_layers * (length * layer + _attention(length, length, width) + cross)
  parts["logits"] = batch_size * words * _dense(width, vocab_size)
  return parts


def encoder_flops(name: str, image_size: int) -> list[float]:
  """Returns the operations of each convolution for one image, in order; padding counts as pixels do."""
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
    stack.size = -(-stack.size // 2)                                 # the max pool
  for depth, width, stride in zip(encoder.depths, encoder.widths, encoder.strides):
    for block in range(depth):
      step, shortcut = stride if block == 0 else 1, dataclasses.replace(stack)    # the same list of operations
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
  """Convolutions in a row over one square image."""
  size: int                                                          # pixels of a side
  channels: int = 3
  flops: list[float] = dataclasses.field(default_factory=list)       # of each convolution so far

  def convolve(self, kernel: int, stride: int, channels: int, groups: int = 1) -> None:
    self.size = -(-self.size // stride)
    self.flops.append(self.size ** 2 * _dense(kernel ** 2 * self.channels // groups, channels))
    self.channels = channels


def _dense(inputs: int, outputs: int) -> int:
  """Returns the operations of one row through a matrix."""
  return 2 * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
  """Returns the operations of the scores and of the weighted sum, all heads together."""
  return 4 * queries * keys * width
