"""The image encoder of a config before training: its variables, random or from a file, and checks of both."""

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.checkpoints.weights import flatten_variables, load_weights
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import describe, is_import_name
from mcsam_jax.files import trace_cache
from mcsam_jax.models.visual_encoders.registry import (
  ENCODERS,
  find_encoder,
  make_encoder,
  make_frozen_stages,
  make_trained_stages,
)


def init_encoder_variables(config: ConfigDict) -> dict:
  """Returns the variables of an untrained encoder, a pure function of config.seed."""
  return jax.jit(make_encoder(config.encoder.name).init)(jax.random.key(config.seed), _blank_image(config))


def find_encoder_shapes(config: ConfigDict) -> dict:
  """Returns the shapes and types of `init_encoder_variables`."""
  init = lambda: init_encoder_variables(config)
  if is_import_name(config.encoder.name):                # the user's own code, which may have changed
    return jax.eval_shape(init)
  return trace_cache.keep_shapes(init, "encoder-shapes", [config.encoder.name, config.data.image_size])


def select_frozen_variables(config: ConfigDict, variables: dict) -> dict:
  """Returns the variables of the frozen stages (`encoder.trained_stages`); all of them without trained stages."""
  if not config.encoder.trained_stages:
    return variables
  shapes = jax.eval_shape(make_frozen_stages(config).init, jax.random.key(0), _blank_image(config))
  return {collection: {name: variables[collection][name] for name in modules} for collection, modules in shapes.items()}


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
      its `EncoderSpec` says; or its stages don't, with `encoder.trained_stages`.
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
  if config.encoder.trained_stages:
    _check_stages(config, features.shape, variables["params"])


def _check_stages(config: ConfigDict, feature_shape: tuple[int, ...], params: dict) -> None:
  """Checks that the frozen and the trained stages of an encoder of the user's own are its two parts.

  Args:
    feature_shape: of the whole encoder's features.
    params: of the whole encoder; arrays or shapes.

  Raises:
    UserError: they aren't.
  """
  name, size, number = config.encoder.name, config.data.image_size, config.encoder.trained_stages
  try:
    init = lambda stages, images: jax.eval_shape(stages.init_with_output, jax.random.key(0), images)
    output, frozen = init(make_frozen_stages(config), _blank_image(config))
    features, trained = init(make_trained_stages(config), output)
  except Exception as error:                             # a user's own code may raise anything
    raise UserError(f"encoder.name={name}: its module failed with its last {number} stages apart, on an image of "
                    f"{size} pixels, with {describe(error)}") from error
  stride, channels = find_encoder(name).stages[-1 - number]
  expected = (1, size // stride, size // stride, channels)
  for part, shape, right_shape in (("frozen", output.shape, expected), ("trained", features.shape, feature_shape)):
    if shape != right_shape:
      raise UserError(f"encoder.name={name}: its {part} stages return {list(shape)} for an image of {size} pixels, "
                      f"expected {list(right_shape)}; check `stages` of its EncoderSpec")
  frozen, trained = (set(flatten_variables(part.get("params", {}))) for part in (frozen, trained))
  if frozen & trained or frozen | trained != set(flatten_variables(params)):
    raise UserError(f"encoder.name={name}: the parameters of its frozen and trained stages aren't together those of "
                    "the encoder; give its submodules names that don't depend on `first_stage` and `end_stage`")


def _blank_image(config: ConfigDict) -> np.ndarray:
  size, spec = config.data.image_size, find_encoder(config.encoder.name)
  return np.zeros((1, size, size, spec.input_channels), np.float32)
