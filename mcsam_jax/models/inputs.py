"""Turns a batch of the input pipeline into the network's arguments, inside the jitted step.

Hosts send uint8 images with one channel, a twelfth of the bytes that most encoders read; normalization and the copy to
the encoder's channels happen on the device.

Shapes: B studies, V views, I input channels, P patches per view, C channels, T tokens.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.findings import LABEL_VALUES
from mcsam_jax.models.contrastive import ContrastiveTargets
from mcsam_jax.models.visual_encoders.registry import find_encoder


def model_inputs(config: ConfigDict, batch: dict, eos_id: int) -> tuple:
  """Returns the arguments of `MCSAM.__call__` for a batch, all but `train`."""
  return (*visual_inputs(config, batch), batch["tokens"], token_mask(batch["tokens"], eos_id))


def visual_inputs(config: ConfigDict, batch: dict) -> tuple:
  """Returns the image arguments of the network: images, outputs of frozen stages or features; view_mask, view_ids."""
  if "features" in batch:
    images = batch["features"].astype(jnp.float32)
    if config.encoder.trained_stages:
      images = make_feature_maps(images)
  else:
    images = normalize_images(batch["images"], config.encoder.name)
  return images, batch["view_mask"], batch["view_ids"]


def make_feature_maps(features: jax.Array) -> jax.Array:
  """Returns features [..., P, C] of square images as maps [..., h, w, C], which the stages of an encoder read."""
  grid = math.isqrt(features.shape[-2])
  return features.reshape(*features.shape[:-2], grid, grid, features.shape[-1])


def normalize_images(images: jax.Array, encoder_name: str) -> jax.Array:
  """Returns images [B, V, height, width, 1] in 0..255 as the encoder expects them: float32 [B, V, height, width, I]."""
  spec = find_encoder(encoder_name)
  mean, std = jnp.array(spec.mean), jnp.array(spec.std)
  return (images.astype(jnp.float32) / 255 - mean) / std


def token_mask(tokens: jax.Array, eos_id: int) -> jax.Array:
  """Returns bool [B, T]: which of tokens[:, 1:] belong to the report, up to and including the first eos.

  Only the first eos counts, because R2Gen's vocabularies use one id for pad, bos and eos.
  """
  is_eos = tokens[:, 1:] == eos_id
  return jnp.cumsum(is_eos, axis=-1) - is_eos == 0


def contrastive_targets(batch: dict, eos_id: int) -> ContrastiveTargets:
  """Returns the targets of the alignment loss for a batch with its reports."""
  tokens = jnp.where(token_mask(batch["tokens"], eos_id), batch["tokens"][:, 1:], -1)
  positive = (batch["labels"] == LABEL_VALUES.index("positive")).astype(jnp.float32)
  return ContrastiveTargets.create(tokens, positive, batch["valid"])
