"""Counts the floating-point operations of an image encoder's forward pass over one image.

Matrix products and convolutions of the project's own encoders are counted from their sizes, two operations per
multiplication, including those on padding. An encoder of the user's own is counted by XLA's cost analysis, which adds
norms and activations (a few percent) and counts the body of a loop once.
"""

import dataclasses
import math

import jax
import numpy as np

from mcsam_jax.models.visual_encoders.densenet import BOTTLENECK, DenseNet, GROWTH, STEM_WIDTH
from mcsam_jax.models.visual_encoders.dinov2 import DinoV2, PATCH_SIZE
from mcsam_jax.models.visual_encoders.efficientnet import EfficientNetLite, STAGES
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_encoder
from mcsam_jax.models.visual_encoders.resnet import Bottleneck, ResNet


def count_encoder_flops(name: str, image_size: int, trained_stages: int = 0) -> tuple[float, float]:
  """Returns the operations of the first layer, whose input needs no gradient, and of all other layers.

  For an encoder of the user's own, all operations are in the second number; it is NaN if XLA can't count them.

  Args:
    trained_stages: count only so many last stages; 0: all.
  """
  encoder, stack = make_encoder(name), _Stack(image_size, find_encoder(name).input_channels)
  if isinstance(encoder, ResNet):
    _add_resnet(stack, encoder)
  elif isinstance(encoder, EfficientNetLite):
    _add_efficientnet(stack)
  elif isinstance(encoder, DenseNet):
    _add_densenet(stack, encoder)
  elif isinstance(encoder, DinoV2):
    _add_dinov2(stack, encoder)
  else:
    return 0.0, math.nan if trained_stages else _count_by_xla(name, image_size)
  flops = stack.flops[stack.stages[-trained_stages]:] if trained_stages else stack.flops
  return flops[0], sum(flops[1:])


@dataclasses.dataclass
class _Stack:
  """A sequence of layers over one square image."""
  size: int                                                          # pixels per side
  channels: int
  flops: list[float] = dataclasses.field(default_factory=list)       # operations of each layer so far
  stages: list[int] = dataclasses.field(default_factory=list)        # number of layers before each stage

  def begin_stage(self) -> None:
    self.stages.append(len(self.flops))

  def convolve(self, kernel: int, stride: int, channels: int, groups: int = 1) -> None:
    """Appends one convolution with padding `same`."""
    self.size = -(-self.size // stride)
    self.flops.append(2 * self.size ** 2 * kernel ** 2 * self.channels // groups * channels)
    self.channels = channels


def _add_resnet(stack: _Stack, encoder: ResNet) -> None:
  stack.convolve(7, encoder.stem_stride, encoder.stem_width)
  if encoder.stem_stride == 2:
    stack.size = -(-stack.size // 2)                                 # max pool
  for depth, width, stride in zip(encoder.depths, encoder.widths, encoder.strides):
    stack.begin_stage()
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


def _add_efficientnet(stack: _Stack) -> None:
  stack.convolve(3, 2, 32)
  for depth, kernel, stride, expansion, width in STAGES:
    stack.begin_stage()
    for block in range(depth):
      hidden = expansion * stack.channels
      if expansion > 1:
        stack.convolve(1, 1, hidden)
      stack.convolve(kernel, stride if block == 0 else 1, hidden, groups=hidden)
      stack.convolve(1, 1, width)
  stack.convolve(1, 1, 1280)


def _add_densenet(stack: _Stack, encoder: DenseNet) -> None:
  stack.convolve(7, 2, STEM_WIDTH)
  stack.size = -(-stack.size // 2)                                   # max pool
  for block, depth in enumerate(encoder.block_depths):
    stack.begin_stage()
    for _ in range(depth):
      layer = dataclasses.replace(stack)                             # shares the list `flops`
      layer.convolve(1, 1, BOTTLENECK)
      layer.convolve(3, 1, GROWTH)
      stack.channels += GROWTH
    if block + 1 < len(encoder.block_depths):
      stack.convolve(1, 1, stack.channels // 2)
      stack.size //= 2                                               # average pool


def _add_dinov2(stack: _Stack, encoder: DinoV2) -> None:
  stack.convolve(PATCH_SIZE, PATCH_SIZE, encoder.width)
  tokens, width = stack.size ** 2 + 1, encoder.width
  projections = 2 * tokens * (4 * width * width + 2 * width * 4 * width)        # attention, feed-forward layers
  stack.flops += [projections + 4 * tokens * tokens * width] * encoder.num_layers


def _count_by_xla(name: str, image_size: int) -> float:
  encoder = make_encoder(name)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, find_encoder(name).input_channels), np.float32)
  variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
  try:
    costs = jax.jit(encoder.apply).lower(variables, image).cost_analysis() or {}
  except Exception:                            # a backend without cost analysis: only the utilization is left out
    return math.nan
  return float(costs.get("flops", math.nan))
