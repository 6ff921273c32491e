"""The training state of reward fine-tuning: the usual one, and the samples that the next step learns from."""

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.train_state import init_train_state, TrainState


@flax.struct.dataclass
class Samples:
  """Reports sampled for the studies of one step.

  Shapes: B studies, K samples, T tokens. Every device holds all of them, so that a host can read its studies' rows.

  Attributes:
    ids: int32 [B, K, T], tokens after bos: up to and including eos if it was reached, then pad.
    draw_log_probs: float32 [B, K], log-probability with which each was drawn.
    references: int32 [B, T + 1], tokens of the studies' own reports, bos first.
  """
  ids: jax.Array
  draw_log_probs: jax.Array
  references: jax.Array


@flax.struct.dataclass
class RewardState(TrainState):
  """State after `step` steps.

  Attributes:
    samples: those of step + 1, drawn with the parameters of step - 1; at step 0 still empty.
  """
  samples: Samples


def init_reward_state(model: MCSAM, config: ConfigDict, batch: dict) -> RewardState:
  """Returns a randomly initialized state at step 0; a pure function of config.seed and the shapes of `batch`."""
  state = init_train_state(model, config, batch)
  size, length = (config.train.batch_size, config.reward.num_samples), config.tokenizer.max_length
  samples = Samples(jnp.zeros((*size, length), jnp.int32), jnp.zeros(size, jnp.float32),
                    jnp.zeros((size[0], length + 1), jnp.int32))
  return RewardState(state.step, state.params, state.batch_stats, state.opt_state, state.ema_params, samples)
