"""Invariants of the network under every switch: causality, masks, equal logits with and without a cache."""

import functools

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.models.contrastive import ContrastiveTargets
from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.mcsam import MCSAM
from tests.testing.random_variables import draw_variables
from tests.testing.tiny import DEEPER_NETWORK, make_arguments

B, V, P, C, T, VOCABULARY = 4, 2, 9, 16, 10, 30
DISTINCT_REPORTS = ContrastiveTargets.create(np.arange(B)[:, None], np.zeros((B, 14)), np.ones(B, bool))
SMALL = make_arguments(DEEPER_NETWORK, encoder__frozen=True)
VARIANTS = {
    "mcsam": [],
    "gate": ["memory.consolidation=gate", "memory.query=word_position", "model.align_on=consolidated",
             "model.findings_head=true"],
    "no_memory": ["model.use_memory=false"],
    "no_alignment": ["model.use_alignment=false"],
    "no_memory_tokens": ["model.use_memory_tokens=false", "model.encoder_layers=0"],
    "r2gencmn": ["model.use_alignment=false", "model.use_memory_tokens=false", "model.norm=r2gencmn",
                 "memory.query=word_position", "model.patch_positions=sinusoidal", "model.word_positions=sinusoidal",
                 "model.patch_activation=relu"],
}


def small_config(*overrides):
  return configs.load_config("phantom", [*SMALL, *(f"--config.{field}" for field in overrides)])


def make(overrides=()):
  """Returns the model, its variables (with the conditioning gate open) and its arguments."""
  config = small_config(*overrides)
  model = MCSAM(FrozenConfigDict(config), VOCABULARY, T, V, 3)
  rng = np.random.default_rng(0)
  features = jnp.asarray(rng.normal(size=(B, V, P, C)), jnp.float32)
  view_mask = jnp.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
  view_ids = jnp.array([[0, 1], [0, 0], [0, 1], [0, 2]])
  tokens = jnp.asarray(rng.integers(4, VOCABULARY, (B, T + 1))).at[:, 0].set(1)
  token_mask = jnp.arange(T)[None, :] < jnp.array([T, 6, 8, 3])[:, None]

  def forward_and_align(module):
    outputs = module(features, view_mask, view_ids, tokens, token_mask, train=False)
    if config.model.use_alignment:
      module.align(outputs.image_embedding, outputs.report_embedding, DISTINCT_REPORTS)

  variables = draw_variables(lambda: model.init(jax.random.key(0), method=forward_and_align))
  if config.model.use_alignment:
    variables["params"]["conditioning_gate"] = jnp.ones(())
  return model, variables, dict(images=features, view_mask=view_mask, view_ids=view_ids, tokens=tokens,
                                token_mask=token_mask)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, inputs):
  return model.apply(variables, **inputs, train=False)


@functools.partial(jax.jit, static_argnums=0)
def encode_and_prefill(model, variables, inputs):
  """Returns the `DecodeConstants` of the model and the `DecodeContext` of the studies."""
  constants = model.apply(variables, method="make_decode_constants")
  encoded = model.apply(variables, inputs["images"], inputs["view_mask"], inputs["view_ids"], constants.memory, False,
                        method="encode_images")
  return constants, model.apply(variables, encoded, method="prefill")


def prefill(model, variables, inputs):
  """Returns decode_step(tokens, cache), jitted, and the `StudyKV` of the studies."""
  constants, context = encode_and_prefill(model, variables, inputs)
  step = lambda tokens, cache: model.apply(variables, tokens, cache, context, constants, method="decode_step")
  return jax.jit(step), context.study_kv


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
  return make(VARIANTS[request.param])


def test_later_tokens_never_change_earlier_logits(network):
  model, variables, inputs = network
  before = run(model, variables, inputs).logits
  changed = inputs | {"tokens": inputs["tokens"].at[:, 6:].set(5)}
  after = run(model, variables, changed).logits
  np.testing.assert_array_equal(after[:, :6], before[:, :6])
  assert np.abs(after[:, 6:-1] - before[:, 6:-1]).max() > 1e-4


def test_absent_views_have_no_effect(network):
  model, variables, inputs = network
  absent = ~inputs["view_mask"][:, :, None, None]
  outputs = run(model, variables, inputs)
  changed = run(model, variables, inputs | {"images": jnp.where(absent, jnp.nan, inputs["images"])})
  np.testing.assert_array_equal(changed.logits, outputs.logits)
  if outputs.image_embedding is not None:
    np.testing.assert_array_equal(changed.image_embedding, outputs.image_embedding)


def test_padding_has_no_effect_on_the_report_embedding(network):
  model, variables, inputs = network
  outputs = run(model, variables, inputs)
  if outputs.report_embedding is None:
    pytest.skip("this variant has no alignment")
  padded = jnp.pad(~inputs["token_mask"], ((0, 0), (1, 0)))
  changed = run(model, variables, inputs | {"tokens": jnp.where(padded, 7, inputs["tokens"])})
  np.testing.assert_array_equal(changed.report_embedding, outputs.report_embedding)


@pytest.mark.parametrize("reorderable", [True, False])
def test_decoding_with_a_cache_equals_the_forward_pass(network, reorderable):
  model, variables, inputs = network
  expected = run(model, variables, inputs).logits
  decode_step, study_kv = prefill(model, variables, inputs)
  cache = grow_cache(init_cache(study_kv, 2, reorderable), study_kv, 2 * T)
  for position in range(T):
    logits, cache = decode_step(jnp.repeat(inputs["tokens"][:, position, None], 2, axis=1), cache)
    for beam in range(2):
      np.testing.assert_allclose(logits[:, beam], expected[:, position], atol=2e-5)


@pytest.mark.parametrize("variant", ["mcsam", "r2gencmn"])
def test_reordered_beams_keep_their_past(variant):
  """Beams end and branch at random, in a cache so small that slots of ended beams are overwritten."""
  model, variables, inputs = make(VARIANTS[variant])
  beams = 3
  rng = np.random.default_rng(0)
  decode_step, study_kv = prefill(model, variables, inputs)
  cache = grow_cache(init_cache(study_kv, beams), study_kv, 2 * T)
  forward = jax.jit(lambda tokens: run(model, variables, inputs | {"tokens": tokens}).logits)
  written = np.zeros((B, beams, 0), np.int32)
  for _ in range(T):
    assert not cache_is_full(cache)
    last_tokens = rng.integers(4, VOCABULARY, (B, beams)).astype(np.int32)
    logits, cache = decode_step(last_tokens, cache)
    written = np.concatenate([written, last_tokens[..., None]], -1)
    for beam in range(beams):
      tokens = np.pad(written[:, beam], ((0, 0), (0, T + 1 - written.shape[-1])), constant_values=4)
      expected = forward(tokens)[:, written.shape[-1] - 1]
      np.testing.assert_allclose(logits[:, beam], expected, atol=2e-5)
    parents = rng.integers(0, beams, (B, beams)) * (rng.random((B, 1)) < 0.7)     # often all of one parent
    written = np.take_along_axis(written, parents[..., None], axis=1)
    cache = cache | {"beams": jnp.take_along_axis(cache["beams"], parents[..., None], axis=1)}


def test_the_image_embedding_does_not_depend_on_the_report():
  model, variables, inputs = make()
  changed = inputs | {"tokens": jnp.full_like(inputs["tokens"], 9)}
  np.testing.assert_array_equal(run(model, variables, changed).image_embedding,
                                run(model, variables, inputs).image_embedding)


def test_image_conditioning_enters_the_decoder_through_a_gate():
  model, variables, inputs = make()
  open_gate = run(model, variables, inputs).logits
  fresh = {"params": variables["params"] | {"conditioning_gate": jnp.zeros(())}}
  other = {"params": fresh["params"] | {"image_head": jax.tree.map(lambda x: x + 1, fresh["params"]["image_head"])}}
  np.testing.assert_array_equal(run(model, other, inputs).logits, run(model, fresh, inputs).logits)
  assert np.abs(run(model, fresh, inputs).logits - open_gate).max() > 1e-4


def test_without_memory_responses_alignment_is_at_chance():
  model, variables, inputs = make()
  bank = variables["params"]["memory_bank"]
  bank = bank | {"output": jax.tree.map(jnp.zeros_like, bank["output"])}
  no_responses = {"params": variables["params"] | {"memory_bank": bank}}
  outputs = run(model, no_responses, inputs)
  alignment = model.apply(no_responses, outputs.image_embedding, outputs.report_embedding, DISTINCT_REPORTS,
                          method="align")
  np.testing.assert_allclose(alignment.loss, np.log(B), rtol=1e-6)


def test_switches_remove_their_parameters():
  names = {variant: set(make(VARIANTS[variant])[1]["params"]) for variant in ("mcsam", "no_memory", "no_alignment")}
  assert names["mcsam"] - names["no_memory"] == {"memory_bank"}
  assert names["mcsam"] - names["no_alignment"] == {
      "text_encoder", "image_head", "report_head", "alignment", "conditioning_projection", "conditioning_norm",
      "conditioning_gate"}


def test_early_logits_have_no_gradient_with_respect_to_later_tokens():
  model, variables, inputs = make()

  def early(embedding):
    params = variables["params"] | {"token_embedding": {"embedding": embedding}}
    return model.apply({"params": params}, **(inputs | {"tokens": tokens}), train=False).logits[0, :4].sum()

  tokens = inputs["tokens"].at[0, 4:].set(29).at[0, :4].set(jnp.array([1, 4, 5, 6]))   # 29 occurs late only
  gradient = jax.jit(jax.grad(early))(variables["params"]["token_embedding"]["embedding"])
  assert np.abs(gradient[29]).max() == 0 and np.abs(gradient[4]).max() > 0


def test_a_network_that_recomputes_activations_decodes():
  plain, recomputed = (make([f"train.remat={remat}"]) for remat in ("none", "layers"))
  contexts = [jax.eval_shape(lambda: prefill(*each)[1]) for each in (plain, recomputed)]
  assert jax.tree.map(jnp.shape, contexts[0]) == jax.tree.map(jnp.shape, contexts[1])
