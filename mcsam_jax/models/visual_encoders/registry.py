"""The image encoders by name: what each expects of an image, and the shape of its features.

An encoder is a Flax module from normalized images [M, height, width, I] to the feature map [M, h, w, C] before the
average pool of its classifier. `encoder.name` is one of ENCODERS, or `package.module:function`, where the function
returns the `EncoderSpec` of an encoder of the user's own. Batch-norm statistics are in the collection `batch_stats`:
`train=True` normalizes by the batch and updates them (the caller makes them mutable), `train=False` uses them.

Shapes: M images, I input channels, h x w patches, P = h * w, C channels.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, TYPE_CHECKING

from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import call_by_name, is_import_name

if TYPE_CHECKING:                           # a config is checked without JAX
  from flax import linen as nn

Weights = dict[str, np.ndarray]             # by flat name, such as params/conv1/kernel


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
  """An image encoder: how it is made, the images that it expects, and the shape of its features.

  Attributes:
    make: function (dtype=..., remat=...) that returns the Flax module, whose `__call__(images, train=False)` computes
      in `dtype`. With remat=True it should recompute activations in the backward pass; it may ignore it.
    channels: C.
    mean: one number per input channel: normalized = (pixel / 255 - mean) / std. Its length is I, to which the one
      channel of an X-ray is repeated.
    std: like `mean`.
    stride: pixels per patch, per axis; `data.image_size` has to be a multiple of it.
    fit_weights: function (weights, shapes) that fits the arrays of a weights file to the variables of this encoder,
      both by flat name, before names and shapes are compared; None changes nothing.
    stages: (pixels per patch and axis, channels) of each stage's output, from the first to the last, whose output is
      the encoder's; () for an encoder that can only be frozen or trained as a whole. The module of an encoder with
      stages has the fields `first_stage` and `end_stage`; a copy with other values computes these stages alone.
  """
  make: "Callable[..., nn.Module]"
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  stride: int
  fit_weights: Callable[[Weights, Mapping[str, tuple[int, ...]]], Weights] | None = None
  stages: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    if min(self.channels, self.stride) < 1:
      raise ValueError(f"channels={self.channels} and stride={self.stride} must be at least 1")
    if not self.mean or len(self.mean) != len(self.std) or 0 in self.std:
      raise ValueError(f"mean={self.mean} and std={self.std} must have one number per input channel, std none of 0")
    if self.stages and (self.stages[-1] != (self.stride, self.channels) or min(map(min, self.stages)) < 1):
      raise ValueError(f"stages={self.stages} must be pairs of numbers from 1 on, the last one (stride, channels) = "
                       f"{self.stride, self.channels}")

  @property
  def input_channels(self) -> int:
    """I, the number of channels of the encoder's images."""
    return len(self.mean)

  def feature_shape(self, image_size: int, omitted_stages: int = 0) -> tuple[int, int]:
    """Returns (P, C), the shape of the features of one square image.

    Args:
      omitted_stages: last stages that aren't applied.
    """
    stride, channels = self.stages[-1 - omitted_stages] if omitted_stages else (self.stride, self.channels)
    return (image_size // stride) ** 2, channels


def find_encoder(name: str) -> EncoderSpec:
  """Returns the encoder of a config's `encoder.name`.

  Raises:
    UserError: there is no such encoder, or the user's own function fails.
  """
  if name in ENCODERS:
    return ENCODERS[name]
  if not is_import_name(name):
    raise UserError(f"encoder.name={name}: must be one of {', '.join(ENCODERS)}, or package.module:function for an "
                    "encoder of your own")
  return _call_own_function(name)


@functools.cache
def _call_own_function(name: str) -> EncoderSpec:
  return call_by_name("encoder.name", name, returns=EncoderSpec)


def frozen_feature_shape(config: ConfigDict) -> tuple[int, int] | None:
  """Returns (P, C), the shape of the features that batches hold per view; None if they hold images.

  Batches hold features if the encoder, or all but its last stages, is frozen.
  """
  if not config.encoder.frozen:
    return None
  return find_encoder(config.encoder.name).feature_shape(config.data.image_size, config.encoder.trained_stages)


def has_trained_encoder(config: ConfigDict) -> bool:
  """Returns whether the network has an image encoder of its own, or the last stages of one."""
  return not config.encoder.frozen or config.encoder.trained_stages > 0


def make_encoder(name: str, dtype: Any = np.float32, remat: bool = False) -> "nn.Module":
  """Returns the encoder of a config's `encoder.name`; its `__call__(images, train=False)` computes in `dtype`.

  remat: recompute the activations of a block in the backward pass; EfficientNet-Lite0 ignores it.
  """
  return find_encoder(name).make(dtype=dtype, remat=remat)


def make_frozen_stages(config: ConfigDict) -> "nn.Module":
  """Returns the frozen part of the image encoder, from images to what batches hold: all of it, or its first stages."""
  encoder = make_encoder(config.encoder.name)
  trained = config.encoder.trained_stages
  return encoder.clone(end_stage=_count_stages(config) - trained) if trained else encoder


def make_trained_stages(config: ConfigDict, dtype: Any = np.float32, remat: bool = False) -> "nn.Module":
  """Returns the trained part of the image encoder: all of it, or with `encoder.frozen` its last stages.

  The last stages map the output of the others [M, h, w, C] to features.
  """
  encoder = make_encoder(config.encoder.name, dtype, remat)
  return encoder.clone(first_stage=_count_stages(config) - config.encoder.trained_stages) if (
      config.encoder.frozen) else encoder


def _count_stages(config: ConfigDict) -> int:
  return len(find_encoder(config.encoder.name).stages)


def _make_resnet(depths: tuple[int, ...], dtype: Any, remat: bool) -> "nn.Module":
  from mcsam_jax.models.visual_encoders.resnet import Bottleneck, ResNet
  return ResNet(Bottleneck, depths, (64, 128, 256, 512), (1, 2, 2, 2), dtype=dtype, remat=remat)


def _make_tiny_resnet(dtype: Any, remat: bool) -> "nn.Module":
  from mcsam_jax.models.visual_encoders.resnet import BasicBlock, ResNet
  return ResNet(BasicBlock, (1, 1, 1, 1), (16, 32, 64, 128), (1, 2, 2, 1), stem_width=16, stem_stride=4, dtype=dtype,
                remat=remat)


def _make_efficientnet(dtype: Any, remat: bool) -> "nn.Module":
  del remat
  from mcsam_jax.models.visual_encoders.efficientnet import EfficientNetLite
  return EfficientNetLite(dtype=dtype)


def _make_densenet(dtype: Any, remat: bool) -> "nn.Module":
  from mcsam_jax.models.visual_encoders.densenet import DenseNet
  return DenseNet(dtype=dtype, remat=remat)


def _make_dinov2(width: int, num_heads: int, dtype: Any, remat: bool) -> "nn.Module":
  from mcsam_jax.models.visual_encoders.dinov2 import DinoV2
  return DinoV2(width, num_layers=12, num_heads=num_heads, dtype=dtype, remat=remat)


def _fit_dinov2_weights(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
  from mcsam_jax.models.visual_encoders.position_grid import fit_position_embeddings
  return fit_position_embeddings(weights, shapes)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)                          # torchvision's normalization
LITE = (127 / 255,) * 3, (128 / 255,) * 3                                        # (pixel - 127) / 128
XRAY_VISION = (0.5,), (1 / 2048,)                                                # torchxrayvision's [-1024, 1024]
RAD_DINO = (0.5307,) * 3, (0.2583,) * 3                                          # RAD-DINO's image processor
TINY = (0.5,) * 3, (0.25,) * 3
_dinov2 = functools.partial(EncoderSpec, stride=14, fit_weights=_fit_dinov2_weights)
_make_small, _make_base = functools.partial(_make_dinov2, 384, 6), functools.partial(_make_dinov2, 768, 12)

RESNET_STAGES = (4, 256), (8, 512), (16, 1024), (32, 2048)
LITE_STAGES = (2, 16), (4, 24), (8, 40), (16, 80), (16, 112), (32, 192), (32, 1280)

ENCODERS = {
    "resnet50": EncoderSpec(functools.partial(_make_resnet, (3, 4, 6, 3)), 2048, *IMAGENET, stride=32,
                            stages=RESNET_STAGES),
    "resnet101": EncoderSpec(functools.partial(_make_resnet, (3, 4, 23, 3)), 2048, *IMAGENET, stride=32,
                             stages=RESNET_STAGES),
    "efficientnet_lite0": EncoderSpec(_make_efficientnet, 1280, *LITE, stride=32, stages=LITE_STAGES),
    "densenet121": EncoderSpec(_make_densenet, 1024, *XRAY_VISION, stride=32,
                               stages=((8, 128), (16, 256), (32, 512), (32, 1024))),
    "dinov2_small": _dinov2(_make_small, 384, *IMAGENET),
    "dinov2_base": _dinov2(_make_base, 768, *IMAGENET),
    "rad_dino": _dinov2(_make_base, 768, *RAD_DINO),
    "resnet_tiny": EncoderSpec(_make_tiny_resnet, 128, *TINY, stride=16,
                               stages=((4, 16), (8, 32), (16, 64), (16, 128))),
}
