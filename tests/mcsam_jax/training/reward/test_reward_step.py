"""Samples have the probability that the update assumes, a resumed run equals an uninterrupted one, rewards rise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.distributed.mesh import make_mesh, shard_batch, state_shardings
from mcsam_jax.inference.token_log_probs import read_reports
from mcsam_jax.models.inputs import visual_inputs
from mcsam_jax.training.reward.policy_gradient import compute_policy_log_probs, sum_over_tokens
from mcsam_jax.training.reward.reward_state import init_reward_state
from mcsam_jax.training.reward.reward_step import RewardStep
from mcsam_jax.training.reward.sample_and_update import make_sample_fn
from tests.testing.random_network import RandomNetwork

B, K, STEPS = 4, 3, 4
FIELDS = {"train__batch_size": B, "train__num_steps": STEPS, "optimizer__warmup_steps": 0, "train__objective": "reward",
          "optimizer__learning_rate": 0.01, "train__init_from": "w", "reward__num_samples": K,
          "reward__temperature": 0.8, "reward__kl_weight": 0.1, "model__encoder_layers": 0,
          "model__decoder_layers": 1}


class CountingScorer:
  """Rewards reports for tokens with high ids; a stand-in for scores of texts."""

  def __init__(self, first_token: int):
    self.first_token = first_token

  def score(self, samples: np.ndarray, references: np.ndarray) -> np.ndarray:
    assert references.shape == (B, samples.shape[-1] + 1)
    return np.stack([(samples >= self.first_token).mean(-1), np.zeros(samples.shape[:2])], -1).astype(np.float32)


class Run:
  """A run of reward steps on one device."""

  def __init__(self, **fields):
    self.network = RandomNetwork(B, **(FIELDS | fields))
    self.config, self.mesh = self.network.config, make_mesh(self.network.config)
    self.batches = [shard_batch(self.mesh, batch) for batch in self.network.make_batches((STEPS + 1) * B)]
    init = functools.partial(init_reward_state, self.network.model, self.config, next(self.network.make_batches(1)))
    self.shardings = state_shardings(self.mesh, jax.eval_shape(init))
    self.init = jax.jit(init, out_shardings=self.shardings)
    self.make_step = lambda *arguments: RewardStep(self.network.model, self.config, self.network.tokenizer, *arguments)
    self.compiled = None

  def advance(self, state, first_step: int, last_step: int, first_token: int = 8):
    """Returns the state after `last_step` and the metrics of each step from a state after `first_step`."""
    step = self.make_step(CountingScorer(first_token), self.mesh, self.shardings, self.init().params, first_step)
    if self.compiled is None:
      self.compiled = step._sample, step._update
    step._sample, step._update = self.compiled            # a new start compiles the same programs
    history = []
    for index in range(first_step, last_step):
      state, metrics = step(state, (self.batches[index], self.batches[index + 1]))
      history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def run():
  run = Run()
  with jax.set_mesh(run.mesh):
    yield run


@pytest.fixture(scope="module")
def uninterrupted(run):
  return run.advance(run.init(), 0, STEPS)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, uninterrupted):
  state, history = run.advance(run.init(), 0, 2)
  saved = jax.tree.map(np.asarray, state)                          # what a checkpoint holds
  state, rest = run.advance(jax.device_put(saved, run.shardings), 2, STEPS)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(uninterrupted[0]))
  jax.tree.map(np.testing.assert_array_equal, history + rest, uninterrupted[1])
  assert int(state.step) == STEPS


def test_metrics_of_the_steps(run, uninterrupted):
  first = uninterrupted[1][0]
  assert {"loss", "token_loss", "align_loss", "reward", "reward_cider", "reward_findings", "entropy", "length",
          "kl", "gradient_norm"} <= first.keys()
  assert first["kl"] == pytest.approx(0, abs=1e-6) and uninterrupted[1][-1]["kl"] > 1e-6
  assert first["reward"] == pytest.approx(first["reward_cider"] * run.config.reward.cider) and first["reward"] > 0
  assert 1 <= first["length"] <= run.config.tokenizer.max_length


def test_samples_were_drawn_with_the_probability_that_the_update_computes(run):
  """Token by token with a cache and as whole reports, the policy is the same distribution; reports vary."""
  network, batch = run.network, run.batches[0]
  samples = jax.jit(make_sample_fn(network.model, run.config, network.tokenizer))(
      network.variables["params"], {}, batch)
  tokens = np.pad(np.asarray(samples.ids), ((0, 0), (0, 0), (1, 0)), constant_values=network.tokenizer.bos_id)
  logits = jax.jit(functools.partial(network.model.apply, method=read_reports))(
      network.variables, visual_inputs(run.config, batch), tokens[..., :-1])
  log_probs = compute_policy_log_probs(logits, 0.8, (network.tokenizer.bos_id, network.tokenizer.pad_id))
  of_tokens = jnp.take_along_axis(log_probs, tokens[..., 1:, None], -1)[..., 0]
  is_eos = tokens[..., 1:] == network.tokenizer.eos_id
  mask = np.cumsum(is_eos, -1) - is_eos == 0
  np.testing.assert_allclose(sum_over_tokens(of_tokens, mask), samples.draw_log_probs, rtol=1e-4, atol=1e-4)
  assert len(np.unique(tokens.reshape(B * K, -1), axis=0)) > K
  np.testing.assert_array_equal(samples.references, batch["tokens"])


@pytest.mark.slow
def test_a_constant_reward_leaves_the_policy_loss_without_gradient():
  run = Run(reward__cross_entropy_weight=0.0, reward__kl_weight=0.0, optimizer__weight_decay=0.0)
  with jax.set_mesh(run.mesh):
    state, history = run.advance(run.init(), 0, 2, first_token=10**6)         # no sample has such tokens
    assert [float(metrics["gradient_norm"]) for metrics in history] == [0, 0]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(run.init().params))
