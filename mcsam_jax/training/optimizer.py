"""AdamW with a learning rate of its own for the image encoder, warm-up, decay and clipping."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax


def learning_rate(config: ConfigDict, peak: float) -> optax.Schedule:
  """Returns the schedule step -> rate: linear from 0 to `peak` over the warm-up, then down to its final fraction."""
  fields, steps = config.optimizer, config.train.num_steps
  rest, end = steps - fields.warmup_steps, peak * fields.final_fraction
  after = {
      "cosine": optax.cosine_decay_schedule(peak, rest, fields.final_fraction),
      "linear": optax.linear_schedule(peak, end, rest),
      "constant": optax.constant_schedule(peak),
  }
  warmup = optax.linear_schedule(0.0, peak, fields.warmup_steps)
  return optax.join_schedules([warmup, after[fields.schedule]], [fields.warmup_steps])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns the optimizer of all parameters; those below `visual_encoder` have their own rate."""
  fields = config.optimizer

  def adamw(peak):
    return optax.adamw(learning_rate(config, peak), fields.b1, fields.b2, weight_decay=fields.weight_decay,
                       mask=decayed)

  parts = optax.multi_transform(
      {"encoder": adamw(fields.encoder_learning_rate), "rest": adamw(fields.learning_rate)}, part_of)
  return optax.chain(optax.clip_by_global_norm(fields.clip_norm), parts) if fields.clip_norm else parts


def ema_decay(config: ConfigDict, step: jax.Array) -> jax.Array:
  """Returns how much of the averaged parameters is kept after step `step` (from 0); little at first.

  (1 + step) / (10 + step), as TensorFlow's ExponentialMovingAverage has it, up to `optimizer.ema_decay`.
  """
  return jnp.minimum(config.optimizer.ema_decay, (1 + step) / (10 + step))


def part_of(params: dict) -> dict:
  """Labels each parameter `encoder` or `rest`."""
  return {name: jax.tree.map(lambda _: "encoder" if name == "visual_encoder" else "rest", tree)
          for name, tree in params.items()}


def decayed(params: dict) -> dict:
  """Says of each parameter whether weight decay applies: kernels of linear and convolutional layers alone."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
