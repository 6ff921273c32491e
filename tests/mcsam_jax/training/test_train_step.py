"""The loss counts tokens up to eos of valid studies only; accumulation, remat and averaging change no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.distributed.mesh import make_mesh, shard_batch
from mcsam_jax.models.initialize import init_variables, make_model
from mcsam_jax.models.inputs import token_mask
from mcsam_jax.training.losses import compute_alignment, forward, measure_batch, token_losses
from mcsam_jax.training.train_state import create_train_state
from mcsam_jax.training.train_step import make_term_gradient_norms, make_train_step
from tests.testing.random_variables import draw_variables

B, T, VOCAB_SIZE, EOS = 4, 6, 20, 2


def load_config(**changes):
  fields = {"encoder.frozen": True, "model.width": 16, "model.feedforward_width": 16, "model.num_heads": 2,
            "memory.num_heads": 2, "memory.num_slots": 12, "memory.slot_width": 8, "memory.top_k": 3,
            "tokenizer.max_length": T, "model.encoder_layers": 0, "model.decoder_layers": 1, "model.dropout": 0.1,
            "model.findings_head": False}
  fields |= {name.replace("__", "."): value for name, value in changes.items()}
  return configs.load_config("phantom", [f"--config.{field}={value}" for field, value in fields.items()])


def make_batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, VOCAB_SIZE, (B, T + 1)).astype(np.int32)
  tokens[:, 0] = 1
  for row, end in enumerate((3, 5, 6, 4)):
    tokens[row, end], tokens[row, end + 1:] = EOS, 0
  return {"features": rng.normal(size=(B, 2, 4, 8)).astype(np.float16), "view_mask": np.ones((B, 2), bool),
          "view_ids": np.tile(np.int32([[0, 1]]), (B, 1)), "tokens": tokens,
          "labels": rng.integers(0, 4, (B, 14)).astype(np.int8), "record": np.arange(B, dtype=np.int32),
          "epoch": np.zeros(B, np.int32), "valid": np.ones(B, bool)}


def init_state(model, config):
  """Returns a state at step 0 with random parameters."""
  variables = draw_variables(lambda: init_variables(model, config, make_batch()))
  return create_train_state(config, jax.tree.map(jnp.asarray, variables["params"]), {})


@pytest.fixture(scope="module")
def loss():
  config = load_config()
  model = make_model(config, VOCAB_SIZE, 2)
  state = init_state(model, config)

  @jax.jit
  def both_terms(batch):
    output = forward(model, config, EOS, state.params, {}, batch, measure_batch(batch, EOS))
    alignment = compute_alignment(model, config, EOS, state.params, output.embeddings, batch)
    return output.token_loss, alignment.loss
  return lambda batch: np.array(both_terms(batch))


def test_token_mask_ends_with_the_first_eos_also_with_shared_special_ids():
  np.testing.assert_array_equal(token_mask(jnp.array([[1, 5, 2, 0, 0], [1, 5, 6, 7, 2]]), 2),
                                [[1, 1, 0, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(token_mask(jnp.array([[0, 5, 0, 0, 0], [0, 5, 6, 7, 8]]), 0),
                                [[1, 1, 0, 0], [1, 1, 1, 1]])


def test_smoothing_by_hand():
  logits = jnp.log(jnp.array([[[0.7, 0.2, 0.1]]]))
  plain = token_losses(logits, jnp.array([[0]]), 0.0)
  smoothed = token_losses(logits, jnp.array([[0]]), 0.3)
  np.testing.assert_allclose(plain, -np.log(0.7), rtol=1e-5)
  np.testing.assert_allclose(smoothed, -0.7 * np.log(0.7) - 0.1 * np.log([0.7, 0.2, 0.1]).sum(), rtol=1e-5)


def test_tokens_after_eos_change_nothing(loss):
  changed = make_batch()
  after = np.cumsum(changed["tokens"] == EOS, axis=1) - (changed["tokens"] == EOS) > 0
  changed["tokens"] = np.where(after, 9, changed["tokens"])
  np.testing.assert_allclose(loss(changed), loss(make_batch()), rtol=1e-6)


def test_padding_studies_change_nothing(loss):
  padded = make_batch()
  padded["valid"] = np.array([True, True, False, False])
  other = {name: array.copy() for name, array in padded.items()}
  other["tokens"][2:] = 7
  other["features"][2:] = 3
  np.testing.assert_allclose(loss(other), loss(padded), rtol=1e-6)
  assert not np.allclose(loss(padded), loss(make_batch()))


def test_loss_on_a_mesh_of_one_device(loss):
  np.testing.assert_allclose(loss(shard_batch(make_mesh(load_config()), make_batch())), loss(make_batch()), rtol=1e-6)


def test_averaged_parameters_are_used_for_evaluation_and_not_for_training():
  """The decay is (1 + step) / (10 + step), that is 1/10, 2/11, 3/12, ..., up to `optimizer.ema_decay`."""
  decays, runs = (1 / 10, 2 / 11, 0.2), {}
  for name, value in (("averaged", 0.2), ("plain", 0.0)):
    config = load_config(optimizer__ema_decay=value, model__use_memory=False, model__use_alignment=False)
    model = make_model(config, VOCAB_SIZE, 2)
    state = init_state(model, config)
    runs[name] = [state]
    step = jax.jit(make_train_step(model, config, EOS))
    for _ in decays:
      runs[name].append(step(runs[name][-1], make_batch())[0])
  expected = runs["plain"][0].params
  for averaged, plain, decay in zip(runs["averaged"][1:], runs["plain"][1:], decays):
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=5e-6),
                 averaged.params, plain.params)
    expected = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, expected, plain.params)
    jax.tree.map(lambda actual, desired: np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=5e-6),
                 averaged.variables["params"], expected)
    assert plain.ema_params is None and plain.variables["params"] is plain.params


@pytest.mark.parametrize("fields", [{"train__grad_accum_steps": 2, "model__use_memory": False,
                                     "model__findings_head": True},
                                    {"train__remat": "layers", "model__use_alignment": False},
                                    {"train__grad_accum_steps": 4, "model__use_alignment": False,
                                     "model__use_memory": False}])
def test_gradient_accumulation_and_remat_change_no_gradient(fields):
  """Without dropout, whose keys differ between microbatches, a step with microbatches or remat is the same step."""
  fields = {"model__dropout": 0.0, "optimizer__warmup_steps": 0} | fields
  plain = {name: value for name, value in fields.items() if not name.startswith("train")}
  results = []
  for config in (load_config(**plain), load_config(**fields)):
    model = make_model(config, VOCAB_SIZE, 2)
    state = init_state(model, config)
    valid = make_batch() | {"valid": np.array([True, True, True, False])}
    results.append(jax.jit(make_train_step(model, config, EOS))(state, valid))
  (plain_state, expected), (state, metrics) = results
  assert metrics.keys() == expected.keys()
  for name in metrics:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
  first_moments = [jax.tree.leaves(state.opt_state) for state in (state, plain_state)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *first_moments)


def test_gradient_norms_of_the_terms_belong_to_the_gradient_of_a_step():
  """The gradient's norm lies between difference and sum of the terms' norms, and equals the token term's alone."""
  config = load_config(model__use_memory=False)
  model = make_model(config, VOCAB_SIZE, 2)
  state = init_state(model, config)
  norms = make_term_gradient_norms(model, config, EOS)(state, make_batch())
  total = jax.jit(make_train_step(model, config, EOS))(state, make_batch())[1]["gradient_norm"]
  token, alignment = float(norms["gradient_norm_token"]), float(norms["gradient_norm_align"])
  assert alignment > 0 and abs(token - alignment) <= total * 1.0001 and total <= (token + alignment) * 1.0001
  config = load_config(model__use_memory=False, model__align_weight=0.0)
  model = make_model(config, VOCAB_SIZE, 2)
  total = jax.jit(make_train_step(model, config, EOS))(state, make_batch())[1]["gradient_norm"]
  np.testing.assert_allclose(total, token, rtol=1e-5)
