"""A vision transformer that the project doesn't know, as a user would write one: `encoder.name` names `make_spec`."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from mcsam_jax.models.visual_encoders.registry import EncoderSpec

PATCH, WIDTH = 8, 16


class TinyViT(nn.Module):
  """Images [M, height, width, 2] -> features [M, height/8, width/8, 16]."""
  dtype: Any

  @nn.compact
  def __call__(self, images, train=False):
    patches = nn.Conv(WIDTH, (PATCH, PATCH), (PATCH, PATCH), dtype=self.dtype)(images)
    x = patches.reshape(len(patches), -1, WIDTH)
    x += self.param("positions", nn.initializers.normal(0.02), x.shape[1:]).astype(x.dtype)
    x += nn.MultiHeadDotProductAttention(2, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
    return nn.LayerNorm(dtype=self.dtype)(x).reshape(patches.shape)


def make_spec():
  return EncoderSpec(lambda dtype=jnp.float32, remat=False: TinyViT(dtype), channels=WIDTH, mean=(0.5, 0.4),
                     std=(0.25, 0.3), stride=PATCH)


def make_wrong_spec():
  return EncoderSpec(lambda dtype=jnp.float32, remat=False: TinyViT(dtype), channels=2 * WIDTH, mean=(0.5, 0.4),
                     std=(0.25, 0.3), stride=PATCH)


class Convolutions(nn.Module):
  """Images [M, height, width, 1] -> features [M, height/8, width/8, 16], in three stages."""
  named: bool
  first_stage: int = 0
  end_stage: int = 3

  @nn.compact
  def __call__(self, images, train=False):
    x = images
    for stage in range(self.first_stage, self.end_stage):
      x = nn.relu(nn.Conv(WIDTH, (3, 3), 2, name=f"stage{stage}" if self.named else None)(x))
    return x


def make_stages(named=True, channels=WIDTH):
  return EncoderSpec(lambda dtype=jnp.float32, remat=False: Convolutions(named), channels=WIDTH, mean=(0.5,),
                     std=(0.25,), stride=8, stages=((2, WIDTH), (4, channels), (8, WIDTH)))


def make_unnamed_stages():
  return make_stages(named=False)


def make_wrong_stages():
  return make_stages(channels=2 * WIDTH)


def make_nothing():
  return None


def fail():
  raise ValueError("no weights\nat all")


NUMBER = 3
