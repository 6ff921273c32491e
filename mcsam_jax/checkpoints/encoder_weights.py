"""The image encoder of a config before training: its variables, random or from a file, and checks of both."""

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.checkpoints.weights import load_weights
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import describe, is_import_name
from mcsam_jax.files import trace_cache
from mcsam_jax.models.visual_encoders.registry import ENCODERS, find_encoder, make_encoder


def init_encoder_variables(config: ConfigDict) -> dict:
  """Returns the variables of an untrained encoder, a pure function of config.seed."""
  return jax.jit(make_encoder(config.encoder.name).init)(jax.random.key(config.seed), _blank_image(config))


def find_encoder_shapes(config: ConfigDict) -> dict:
  """Returns the shapes and types of `init_encoder_variables`."""
  init = lambda: init_encoder_variables(config)
  if is_import_name(config.encoder.name):                # the user's own code, which may have changed
    return jax.eval_shape(init)
  return trace_cache.keep_shapes(init, "encoder-shapes", [config.encoder.name, config.data.image_size])


def load_encoder_weights(path: epath.PathLike, config: ConfigDict) -> tuple[dict, dict]:
  """Returns the variables of the config's encoder from a file, and the file's metadata.

  Args:
    path: a file written by `mcsam import-weights encoder` or `save_weights`.
    config: its encoder's `fit_weights` is applied to the file's arrays.

  Raises:
    UserError: the file is missing or damaged, holds another encoder, or names or shapes differ.
  """
  name = config.encoder.name
  variables, meta = load_weights(path, find_encoder_shapes(config), find_encoder(name).fit_weights)
  stored = meta.get("architecture")
  if stored in ENCODERS and name in ENCODERS and stored != name:     # same shapes, but other input normalization
    raise UserError(f"{path} holds weights of {stored}, not of encoder.name={name}: set "
                    f"--config.encoder.name={stored}, or choose another file")
  return variables, meta


def check_encoder(config: ConfigDict) -> None:
  """Checks an encoder of the user's own on one blank image, without computing anything.

  Raises:
    UserError: the module fails, has variables that training doesn't know, or returns features of another shape than
      its `EncoderSpec` says.
  """
  name, size = config.encoder.name, config.data.image_size
  if not is_import_name(name):
    return
  spec, image = find_encoder(name), _blank_image(config)
  try:
    features, variables = jax.eval_shape(make_encoder(name).init_with_output, jax.random.key(0), image)
  except Exception as error:                             # a user's own code may raise anything
    raise UserError(f"encoder.name={name}: its module failed on an image {list(image.shape)} with "
                    f"{describe(error)}") from error
  expected = (1, size // spec.stride, size // spec.stride, spec.channels)
  if features.shape != expected:
    raise UserError(f"encoder.name={name}: its module returned features {list(features.shape)} for an image of {size} "
                    f"pixels, expected {list(expected)}, because stride={spec.stride} and channels={spec.channels}")
  if unknown := sorted(set(variables) - {"params", "batch_stats"}):
    raise UserError(f"encoder.name={name}: its module has the variable collection {unknown[0]}; only params and "
                    "batch_stats are trained and stored")


def _blank_image(config: ConfigDict) -> np.ndarray:
  size, spec = config.data.image_size, find_encoder(config.encoder.name)
  return np.zeros((1, size, size, spec.input_channels), np.float32)
