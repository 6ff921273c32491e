"""The image encoders by name: what each expects of an image, and the shape of its features.

An encoder is a Flax module from normalized images [M, height, width, 3] to the feature map [M, h, w, C] before the
average pool of its classifier. Batch-norm statistics are in the collection `batch_stats`: `train=True` normalizes by
the batch and updates them (the caller makes them mutable), `train=False` uses them.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.models.visual_encoders.efficientnet import EfficientNetLite
from mcsam_jax.models.visual_encoders.resnet import BasicBlock, Bottleneck, ResNet


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
  """Input normalization and output shape of an encoder."""
  channels: int                             # C
  mean: tuple[float, float, float]          # red, green, blue, in [0, 1]: normalized = (pixel / 255 - mean) / std
  std: tuple[float, float, float]
  stride: int                               # pixels per patch, per axis

  def feature_shape(self, image_size: int) -> tuple[int, int]:
    """Returns (P, C), the shape of the features of one square image with P patches."""
    return (image_size // self.stride) ** 2, self.channels


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)                          # torchvision's normalization
LITE = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)      # (pixel - 127) / 128
TINY = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

ENCODERS = {
    "resnet50": EncoderSpec(2048, *IMAGENET, stride=32),
    "resnet101": EncoderSpec(2048, *IMAGENET, stride=32),
    "efficientnet_lite0": EncoderSpec(1280, *LITE, stride=32),
    "resnet_tiny": EncoderSpec(128, *TINY, stride=16),
}


def frozen_feature_shape(config: ConfigDict) -> tuple[int, int] | None:
  """Returns (P, C), the shape of the features that batches hold per view; None if they hold images.

  Batches hold features if the encoder is frozen.
  """
  return ENCODERS[config.encoder.name].feature_shape(config.data.image_size) if config.encoder.frozen else None


def make_encoder(name: str, dtype: Any = jnp.float32, remat: bool = False, **kwargs) -> nn.Module:
  """Returns the encoder `name` of ENCODERS; its `__call__(images, train=False)` computes in `dtype`.

  remat: recompute the activations of a ResNet's blocks in the backward pass; other encoders ignore it.
  """
  if name == "efficientnet_lite0":
    return EfficientNetLite(dtype=dtype, **kwargs)
  if name == "resnet_tiny":
    return ResNet(BasicBlock, (1, 1, 1, 1), (16, 32, 64, 128), (1, 2, 2, 1), stem_width=16, stem_stride=4,
                  dtype=dtype, remat=remat, **kwargs)
  depths = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[name]
  return ResNet(Bottleneck, depths, (64, 128, 256, 512), (1, 2, 2, 2), dtype=dtype, remat=remat, **kwargs)
