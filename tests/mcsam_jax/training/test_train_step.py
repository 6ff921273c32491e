"""What counts in the loss: tokens up to eos of studies that are valid, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.distributed.mesh import make_mesh, shard_batch
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.inputs import token_mask
from mcsam_jax.training.train_step import (
  align,
  count_tokens,
  init_train_state,
  make_term_norms,
  make_train_step,
  read,
  token_losses,
)

B, T, VOCABULARY, EOS = 4, 6, 20, 2
pytestmark = pytest.mark.usefixtures("compiled_quickly")


def small(**more):
  fields = {"encoder.frozen": True, "model.width": 16, "model.feedforward_width": 16, "model.num_heads": 2,
            "memory.num_heads": 2, "memory.num_slots": 12, "memory.slot_width": 8, "memory.top_k": 3,
            "tokenizer.max_length": T, "model.encoder_layers": 0, "model.decoder_layers": 1}
  fields |= {name.replace("__", "."): value for name, value in more.items()}
  return configs.load_config("phantom", [f"--config.{field}={value}" for field, value in fields.items()])


def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, VOCABULARY, (B, T + 1)).astype(np.int32)
  tokens[:, 0] = 1
  for row, end in enumerate((3, 5, 6, 4)):
    tokens[row, end], tokens[row, end + 1:] = EOS, 0
  return {"features": rng.normal(size=(B, 2, 4, 8)).astype(np.float16), "view_mask": np.ones((B, 2), bool),
          "view_ids": np.tile(np.int32([[0, 1]]), (B, 1)), "tokens": tokens, "labels": np.zeros((B, 14), np.int8),
          "record": np.arange(B, dtype=np.int32), "epoch": np.zeros(B, np.int32), "valid": np.ones(B, bool)}


@pytest.fixture(scope="module")
def loss():
  config = small()
  model = make_model(config, VOCABULARY, 2)
  state = jax.jit(lambda: init_train_state(model, config, batch()))()

  @jax.jit
  def both(batch):
    found = read(model, config, EOS, state.params, {}, batch, count_tokens(batch, EOS))
    return found.token_loss, align(model, config, EOS, state.params, found.codes, batch).loss
  return lambda batch: np.array(both(batch))


def test_mask_ends_with_the_first_eos_also_where_ids_are_shared():
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


def test_what_stands_after_eos_changes_nothing(loss):
  changed = batch()
  after = np.cumsum(changed["tokens"] == EOS, axis=1) - (changed["tokens"] == EOS) > 0
  changed["tokens"] = np.where(after, 9, changed["tokens"])
  np.testing.assert_allclose(loss(changed), loss(batch()), rtol=1e-6)


def test_studies_that_fill_up_a_batch_change_nothing(loss):
  padded = batch()
  padded["valid"] = np.array([True, True, False, False])
  other = {name: array.copy() for name, array in padded.items()}
  other["tokens"][2:] = 7
  other["features"][2:] = 3
  np.testing.assert_allclose(loss(other), loss(padded), rtol=1e-6)
  assert not np.allclose(loss(padded), loss(batch()))


def test_the_mesh_of_one_device_takes_a_batch(loss):
  np.testing.assert_allclose(loss(shard_batch(make_mesh(small()), batch())), loss(batch()), rtol=1e-6)


def test_the_moving_average_writes_and_does_not_train():
  """Of the average are kept (1 + step) / (10 + step), 1/10, 2/11, 3/12, ... up to the decay."""
  kept, runs = (1 / 10, 2 / 11, 0.2), {}
  for name, value in (("averaged", 0.2), ("plain", 0.0)):
    config = small(optimizer__ema_decay=value)
    model = make_model(config, VOCABULARY, 2)
    state = jax.jit(lambda: init_train_state(model, config, batch()))()
    runs[name] = [state]
    step = jax.jit(make_train_step(model, config, EOS))
    for _ in kept:
      runs[name].append(step(runs[name][-1], batch())[0])
  expected = runs["plain"][0].params
  for old, plain, share in zip(runs["averaged"][1:], runs["plain"][1:], kept):
    jax.tree.map(np.testing.assert_array_equal, old.params, plain.params)
    expected = jax.tree.map(lambda average, new: share * average + (1 - share) * new, expected, plain.params)
    jax.tree.map(lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6),
                 old.variables["params"], expected)
    assert plain.average is None and plain.variables["params"] is plain.params


@pytest.mark.parametrize("fields", [{"train__grad_accum_steps": 2}, {"train__remat": "layers"},
                                    {"train__grad_accum_steps": 4, "model__use_alignment": False}])
def test_saving_memory_changes_no_gradient(fields):
  """Without dropout, whose draws are a part's own, one step in several turns, or with remat, is the same step."""
  fields = {"model__dropout": 0.0, "optimizer__warmup_steps": 0} | fields
  plain = {name: value for name, value in fields.items() if not name.startswith("train")}
  ends = []
  for config in (small(**plain), small(**fields)):
    model = make_model(config, VOCABULARY, 2)
    state = jax.jit(lambda: init_train_state(model, config, batch()))()
    valid = batch() | {"valid": np.array([True, True, True, False])}
    ends.append(jax.jit(make_train_step(model, config, EOS))(state, valid))
  (one, measured), (other, expected) = ends
  assert measured.keys() == expected.keys()
  for name in measured:
    np.testing.assert_allclose(measured[name], expected[name], rtol=1e-4, err_msg=name)
  first_moments = [jax.tree.leaves(state.opt_state) for state in (one, other)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *first_moments)


def test_the_terms_norms_are_of_the_gradient_that_a_step_takes():
  """The gradient's norm lies between difference and sum of its terms' norms, and is the token's alone without the other."""
  config = small()
  model = make_model(config, VOCABULARY, 2)
  state = jax.jit(lambda: init_train_state(model, config, batch()))()
  norms = make_term_norms(model, config, EOS)(state, batch())
  whole = jax.jit(make_train_step(model, config, EOS))(state, batch())[1]["gradient_norm"]
  token, alignment = float(norms["gradient_norm_token"]), float(norms["gradient_norm_align"])
  assert alignment > 0 and abs(token - alignment) <= whole * 1.0001 and whole <= (token + alignment) * 1.0001
  config = small(model__align_weight=0.0)
  model = make_model(config, VOCABULARY, 2)
  np.testing.assert_allclose(jax.jit(make_train_step(model, config, EOS))(state, batch())[1]["gradient_norm"], token,
                             rtol=1e-5)
