"""AdamW with warm-up, decay, gradient clipping, and a separate learning rate for the image encoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from mcsam_jax.extensions.by_name import call_by_name, is_import_name


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns the optimizer of all parameters; those of `visual_encoder` have their own peak learning rate."""
  fields = config.optimizer

  def adamw(peak: float) -> optax.GradientTransformation:
    return optax.adamw(learning_rate(config, peak), fields.b1, fields.b2, weight_decay=fields.weight_decay,
                       mask=weight_decay_mask)

  optimizer = optax.multi_transform(
      {"encoder": adamw(fields.encoder_learning_rate), "rest": adamw(fields.learning_rate)}, label_params)
  return optax.chain(optax.clip_by_global_norm(fields.clip_norm), optimizer) if fields.clip_norm else optimizer


def learning_rate(config: ConfigDict, peak: float) -> optax.Schedule:
  """Returns a schedule that rises linearly from 0 to `peak` during warm-up and then decays to its final fraction.

  Raises:
    UserError: `optimizer.schedule` names a function of the user's own that can't be called or returns no schedule.
  """
  fields = config.optimizer
  decay_steps = config.train.num_steps - fields.warmup_steps
  if is_import_name(fields.schedule):
    decay = call_by_name("optimizer.schedule", fields.schedule, config, peak, decay_steps, returns=Callable)
  else:
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, fields.final_fraction),
        "linear": optax.linear_schedule(peak, peak * fields.final_fraction, decay_steps),
        "constant": optax.constant_schedule(peak),
    }[fields.schedule]
  warmup = optax.linear_schedule(0.0, peak, fields.warmup_steps)
  return optax.join_schedules([warmup, decay], [fields.warmup_steps])


def schedule_depends_on_length(config: ConfigDict) -> bool:
  """Returns whether the learning rate of a step depends on `train.num_steps`."""
  return config.optimizer.schedule != "constant"


def ema_decay(config: ConfigDict, step: jax.Array) -> jax.Array:
  """Returns the decay of the parameters' moving average at a step, counted from 0; it starts low and rises.

  min(optimizer.ema_decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage.
  """
  return jnp.minimum(config.optimizer.ema_decay, (1 + step) / (10 + step))


def label_params(params: dict) -> dict:
  """Returns a tree of labels: `encoder` for the parameters of `visual_encoder`, `rest` for all others."""
  return {name: jax.tree.map(lambda _: "encoder" if name == "visual_encoder" else "rest", tree)
          for name, tree in params.items()}


def weight_decay_mask(params: dict) -> dict:
  """Returns a tree of booleans: True where weight decay applies, which is for the kernels of dense and conv layers."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
