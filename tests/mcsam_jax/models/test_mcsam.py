"""What the network must keep whatever its switches: causality, masks, and one answer with and without a cache."""

import functools

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.models.semantic_alignment import make_pairs

B, V, P, C, T, VOCABULARY = 4, 2, 9, 16, 10, 30
PAIRS = make_pairs(np.arange(B)[:, None], np.zeros((B, 14)), np.ones(B, bool))      # of reports that all differ
SMALL = ["encoder.frozen=true", "model.width=32", "model.feedforward_width=48", "model.num_heads=4", "memory.num_heads=4",
         "memory.num_slots=40", "memory.top_k=6", "memory.slot_width=24", "model.num_memory_tokens=3", "model.encoder_layers=1",
         "model.decoder_layers=2"]
VARIANTS = {
    "mcsam": [],
    "word_position": ["memory.query=word_position"],
    "gate": ["memory.consolidation=gate", "model.align_on=consolidated"],
    "no_memory": ["model.use_memory=false"],
    "no_alignment": ["model.use_alignment=false"],
    "no_prompts": ["model.use_memory_tokens=false"],
    "no_encoder_layers": ["model.encoder_layers=0"],
    "r2gencmn": ["model.use_alignment=false", "model.use_memory_tokens=false", "model.norm=r2gencmn",
                 "memory.query=word_position", "model.patch_positions=sinusoidal", "model.word_positions=sinusoidal",
                 "model.patch_activation=relu"],
}


def small_config(*overrides):
  return configs.load_config("phantom", [f"--config.{field}" for field in (*SMALL, *overrides)])


def make(overrides=()):
  """Returns model, variables (the gate of the image's code opened) and its arguments."""
  config = small_config(*overrides)
  model = MCSAM(FrozenConfigDict(config), VOCABULARY, T, V, 3)
  rng = np.random.default_rng(0)
  features = jnp.asarray(rng.normal(size=(B, V, P, C)), jnp.float32)
  view_mask = jnp.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
  view_ids = jnp.array([[0, 1], [0, 0], [0, 1], [0, 2]])
  tokens = jnp.asarray(rng.integers(4, VOCABULARY, (B, T + 1))).at[:, 0].set(1)
  token_mask = jnp.arange(T)[None, :] < jnp.array([T, 6, 8, 3])[:, None]

  def whole(module):
    outputs = module(features, view_mask, view_ids, tokens, token_mask, train=False)
    if config.model.use_alignment:
      module.align(outputs.image_embedding, outputs.report_embedding, PAIRS)

  variables = jax.jit(lambda key: model.init(key, method=whole))(jax.random.key(0))
  if config.model.use_alignment:
    variables["params"]["code_gate"] = jnp.ones(())
  return model, variables, dict(images=features, view_mask=view_mask, view_ids=view_ids, tokens=tokens,
                                token_mask=token_mask)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, inputs):
  return model.apply(variables, **inputs, train=False)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
  return make(VARIANTS[request.param])


def test_a_later_token_never_changes_an_earlier_logit(network):
  model, variables, inputs = network
  before = run(model, variables, inputs).logits
  changed = inputs | {"tokens": inputs["tokens"].at[:, 6:].set(5)}
  after = run(model, variables, changed).logits
  np.testing.assert_array_equal(after[:, :6], before[:, :6])
  assert np.abs(after[:, 6:-1] - before[:, 6:-1]).max() > 1e-4


def test_what_stands_in_an_absent_view_changes_nothing(network):
  model, variables, inputs = network
  absent = ~inputs["view_mask"][:, :, None, None]
  outputs = run(model, variables, inputs)
  changed = run(model, variables, inputs | {"images": jnp.where(absent, jnp.nan, inputs["images"])})
  np.testing.assert_array_equal(changed.logits, outputs.logits)
  if outputs.image_embedding is not None:
    np.testing.assert_array_equal(changed.image_embedding, outputs.image_embedding)


def test_what_stands_in_a_padded_position_changes_no_code(network):
  model, variables, inputs = network
  outputs = run(model, variables, inputs)
  if outputs.report_embedding is None:
    pytest.skip("this variant has no alignment")
  padded = jnp.pad(~inputs["token_mask"], ((0, 0), (1, 0)))
  changed = run(model, variables, inputs | {"tokens": jnp.where(padded, 7, inputs["tokens"])})
  np.testing.assert_array_equal(changed.report_embedding, outputs.report_embedding)


@pytest.mark.parametrize("exchange", [True, False])
def test_word_by_word_with_a_cache_equals_all_at_once(network, exchange):
  model, variables, inputs = network
  expected = run(model, variables, inputs).logits
  prepared = model.apply(variables, method="prepare")
  begun = model.apply(variables, inputs["images"], inputs["view_mask"], inputs["view_ids"], prepared, method="begin")
  cache = model.apply(variables, begun, 2, exchange, method="init_cache")
  cache = model.apply(variables, cache, 2 * T, method="grow")
  step = jax.jit(lambda words, cache: model.apply(variables, words, cache, begun, prepared, method="step"))
  for position in range(T):
    logits, cache = step(jnp.repeat(inputs["tokens"][:, position, None], 2, axis=1), cache)
    for beam in range(2):
      np.testing.assert_allclose(logits[:, beam], expected[:, position], atol=2e-5)


@pytest.mark.parametrize("variant", ["mcsam", "r2gencmn"])
def test_beams_that_change_places_keep_their_past(variant):
  """Beams die and branch at random, in a cache so small that the nodes of the dead are written over."""
  model, variables, inputs = make(VARIANTS[variant])
  beams, room = 3, 2 * T
  rng = np.random.default_rng(0)
  prepared = model.apply(variables, method="prepare")
  begun = model.apply(variables, inputs["images"], inputs["view_mask"], inputs["view_ids"], prepared, method="begin")
  cache = model.apply(variables, begun, beams, method="init_cache")
  cache = model.apply(variables, cache, room, method="grow")
  step = jax.jit(lambda words, cache: model.apply(variables, words, cache, begun, prepared, method="step"))
  immediate = jax.jit(lambda tokens: run(model, variables, inputs | {"tokens": tokens}).logits)
  written = np.zeros((B, beams, 0), np.int32)
  for _ in range(T):
    assert not model.apply(variables, cache, method="full")
    words = rng.integers(4, VOCABULARY, (B, beams)).astype(np.int32)
    logits, cache = step(words, cache)
    written = np.concatenate([written, words[..., None]], -1)
    for beam in range(beams):
      tokens = np.pad(written[:, beam], ((0, 0), (0, T + 1 - written.shape[-1])), constant_values=4)
      expected = immediate(tokens)[:, written.shape[-1] - 1]
      np.testing.assert_allclose(logits[:, beam], expected, atol=2e-5)
    parents = rng.integers(0, beams, (B, beams)) * (rng.random((B, 1)) < 0.7)     # often all of one parent
    written = np.take_along_axis(written, parents[..., None], axis=1)
    cache = cache | {"beams": jnp.take_along_axis(cache["beams"], parents[..., None], axis=1)}


def test_nothing_of_the_report_reaches_the_image_code():
  model, variables, inputs = make()
  changed = inputs | {"tokens": jnp.full_like(inputs["tokens"], 9)}
  np.testing.assert_array_equal(run(model, variables, changed).image_embedding, run(model, variables, inputs).image_embedding)


def test_the_image_code_enters_the_decoder_through_a_gate_that_starts_at_zero():
  model, variables, inputs = make()
  open_gate = run(model, variables, inputs).logits
  fresh = {"params": variables["params"] | {"code_gate": jnp.zeros(())}}
  other = {"params": fresh["params"] | {"image_head": jax.tree.map(lambda x: x + 1, fresh["params"]["image_head"])}}
  np.testing.assert_array_equal(run(model, other, inputs).logits, run(model, fresh, inputs).logits)
  assert np.abs(run(model, fresh, inputs).logits - open_gate).max() > 1e-4


def test_without_the_memorys_answer_the_alignment_cannot_tell_pairs_apart():
  model, variables, inputs = make()
  bank = variables["params"]["memory_bank"]
  silent = {"params": variables["params"] | {"memory_bank": bank | {"output": jax.tree.map(jnp.zeros_like, bank["output"])}}}
  outputs = run(model, silent, inputs)
  aligned = model.apply(silent, outputs.image_embedding, outputs.report_embedding, PAIRS, method="align")
  np.testing.assert_allclose(aligned.loss, np.log(B), rtol=1e-6)


def test_switches_remove_their_parameters():
  names = {variant: set(make(VARIANTS[variant])[1]["params"]) for variant in ("mcsam", "no_memory", "no_alignment")}
  assert names["mcsam"] - names["no_memory"] == {"memory_bank"}
  assert names["mcsam"] - names["no_alignment"] == {
      "text_encoder", "image_head", "report_head", "alignment", "conditioning_projection", "conditioning_norm", "conditioning_gate"}


def test_gradient_of_an_early_logit_with_respect_to_later_words_is_zero():
  model, variables, inputs = make()

  def early(embedding):
    params = variables["params"] | {"words": {"embedding": embedding}}
    return model.apply({"params": params}, **(inputs | {"tokens": tokens}), train=False).logits[0, :4].sum()

  tokens = inputs["tokens"].at[0, 4:].set(29).at[0, :4].set(jnp.array([1, 4, 5, 6]))   # 29 stands late only
  gradient = jax.jit(jax.grad(early))(variables["params"]["words"]["embedding"])
  assert np.abs(gradient[29]).max() == 0 and np.abs(gradient[4]).max() > 0
