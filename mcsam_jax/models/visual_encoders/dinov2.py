"""The vision transformer of DINOv2 (Oquab et al., 2024), which is also that of RAD-DINO.

Layers normalize first and scale each branch by a learned vector; a class token takes part in attention and is dropped
from the features. The position embeddings are parameters of the image size that the network runs at; those of a
checkpoint are resized when it is loaded (`position_grid.py`).

Shapes: M images, h x w patches of 14 x 14 pixels, L = 1 + h * w tokens, H heads, D width.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.errors import UserError

PATCH_SIZE = 14                      # pixels, per axis
LAYER_NORM_EPSILON = 1e-6


class DinoV2(nn.Module):
  """Normalized images [M, height, width, 3] -> features [M, height/14, width/14, D].

  Attributes:
    width: D.
    num_layers: number of transformer layers.
    num_heads: H.
    dtype: type of the computation; parameters are float32.
    remat: recompute each layer's activations in the backward pass.
  """
  width: int
  num_layers: int
  num_heads: int
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    del train                        # neither dropout nor batch statistics
    num_images, *size = images.shape[:3]
    if size[0] % PATCH_SIZE or size[1] % PATCH_SIZE:
      raise UserError(f"images of {size[0]} x {size[1]} pixels: DINOv2 needs multiples of {PATCH_SIZE}")
    patches = nn.Conv(self.width, (PATCH_SIZE, PATCH_SIZE), (PATCH_SIZE, PATCH_SIZE), padding="VALID",
                      dtype=self.dtype, name="patch_projection")(images)                  # [M, h, w, D]
    grid = patches.shape[1:3]
    x = self.add_positions(patches.reshape(num_images, -1, self.width))                  # [M, L, D]
    layer = nn.remat(Layer) if self.remat else Layer
    for index in range(self.num_layers):
      x = layer(self.num_heads, name=f"layer_{index}")(x)
    x = layer_norm(self.dtype, "norm")(x)
    return x[:, 1:].reshape(num_images, *grid, self.width)

  def add_positions(self, patches: jax.Array) -> jax.Array:
    """Returns the class token and the patches [M, h * w, D], with their position embeddings, as [M, L, D]."""
    init = nn.initializers.normal(0.02)
    token = self.param("cls_token", init, (1, 1, self.width))
    positions = self.param("position_embeddings", init, (1, 1 + patches.shape[1], self.width))
    token = jnp.broadcast_to(token, (patches.shape[0], 1, self.width)).astype(patches.dtype)
    return jnp.concatenate([token, patches], 1) + positions.astype(patches.dtype)


class Layer(nn.Module):
  """Self-attention and a feed-forward network, each with a scaled residual branch: [M, L, D] -> [M, L, D]."""
  num_heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width, dtype = x.shape[-1], x.dtype
    dense = lambda features, name: nn.Dense(features, dtype=dtype, name=name)
    y = layer_norm(dtype, "norm1")(x)
    split = lambda name: dense(width, name)(y).reshape(*y.shape[:2], self.num_heads, -1)  # [M, L, H, D/H]
    y = jax.nn.dot_product_attention(split("query"), split("key"), split("value")).reshape(x.shape)
    x += self.scale("scale1", width, dtype) * dense(width, "attention_output")(y)
    y = nn.gelu(dense(4 * width, "hidden")(layer_norm(dtype, "norm2")(x)), approximate=False)
    return x + self.scale("scale2", width, dtype) * dense(width, "output")(y)

  def scale(self, name: str, width: int, dtype: Any) -> jax.Array:
    return self.param(name, nn.initializers.ones, (width,)).astype(dtype)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)
