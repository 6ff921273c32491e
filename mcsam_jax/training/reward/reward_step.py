"""One step of reward fine-tuning, on devices and hosts.

    devices   ... update of step k - 1 | sample for step k + 1 | update of step k ...
    hosts              score the samples of step k             | score those of step k + 1 ...

The samples of a step are drawn with the parameters of one update earlier, so hosts score them while the devices are
busy. They belong to the training state: a resumed run learns from the same samples as an uninterrupted one.
"""

import dataclasses

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import local_rows, replicated, shard_batch
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.reward.reward_state import RewardState
from mcsam_jax.training.reward.rewards import RewardScorer
from mcsam_jax.training.reward.sample_and_update import make_sample_fn, make_update_fn


class RewardStep:
  """Performs training steps; called with the same arguments on all hosts, each of which scores its own studies."""

  def __init__(self, model: MCSAM, config: ConfigDict, tokenizer: Tokenizer, scorer: RewardScorer, mesh: Mesh,
               shardings: RewardState, start_params, first_step: int):
    """Builds the jitted functions; they are compiled at the first call.

    Args:
      scorer: computes the reward terms of samples.
      shardings: of the state.
      start_params: parameters of the start model, sharded; None without `reward.kl_weight`.
      first_step: number of steps completed before this start of the run.
    """
    self._has_samples = first_step > 0
    self._scorer, self._mesh, self._start_params = scorer, mesh, start_params
    self._rows = local_rows(mesh, config.train.batch_size)
    self._sample = jax.jit(make_sample_fn(model, config, tokenizer), out_shardings=replicated(mesh))
    self._update = jax.jit(make_update_fn(model, config, tokenizer), donate_argnums=0,
                           out_shardings=(shardings, replicated(mesh)))

  def __call__(self, state: RewardState, batches: tuple[dict, dict]) -> tuple[RewardState, dict[str, jax.Array]]:
    """Returns the next state and the metrics of a step.

    Args:
      state: its arrays are donated.
      batches: the global batch that `state.samples` belong to, and the next one.
    """
    batch, next_batch = batches
    if not self._has_samples:
      state = dataclasses.replace(state, samples=self._sample(state.params, state.batch_stats, batch))
      self._has_samples = True
    next_samples = self._sample(state.params, state.batch_stats, next_batch)      # runs while this host scores
    ids, references = (np.asarray(array)[self._rows] for array in (state.samples.ids, state.samples.references))
    terms = shard_batch(self._mesh, {"terms": self._scorer.score(ids, references)})["terms"]
    return self._update(state, batch, terms, self._start_params, next_samples)
