"""The findings head: its loss by hand, its class weights and probabilities, and which gradients pass through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.models.findings_head import compute_positive_weights, FindingsHead, MAX_POSITIVE_WEIGHT

B, N, D, F = 3, 4, 8, len(FINDINGS)
POSITIVE, UNCERTAIN, NEGATIVE = (LABEL_VALUES.index(value) for value in ("positive", "uncertain", "negative"))


@pytest.fixture(scope="module")
def head():
  """Returns the module, its parameters with weights 1, 2, ..., 14, and arguments."""
  rng = np.random.default_rng(0)
  patches, responses = (jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32) for _ in range(2))
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
  inputs = (patches, responses, mask, jnp.asarray(rng.normal(size=(B, D)), jnp.float32), False)
  module = FindingsHead(D)

  def call_all(module):
    module.make_tokens(module(*inputs))
  params = module.init(jax.random.key(0), method=call_all)["params"]
  return module, params | {"positive_weight": jnp.arange(1.0, F + 1)}, inputs


def test_class_weights_by_hand():
  labels = np.full((100, F), LABEL_VALUES.index("absent"))
  labels[:20, 0], labels[20:30, 0] = POSITIVE, UNCERTAIN              # 20 positive, 10 uncertain, 70 negative
  labels[:, 1] = POSITIVE
  labels[:50, 2] = NEGATIVE
  weights = compute_positive_weights(labels)
  assert weights[0] == 70 / 20 and weights[1] == np.float32(1 / MAX_POSITIVE_WEIGHT)
  assert (weights[2:] == MAX_POSITIVE_WEIGHT).all()                   # never positive


def test_loss_by_hand(head):
  module, params, _ = head
  rng = np.random.default_rng(1)
  logits, labels = rng.normal(size=(B, F)), rng.integers(0, 4, (B, F))
  valid, weight = np.array([True, False, True]), np.arange(1.0, F + 1)
  loss = module.apply({"params": params}, jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(valid), method="loss")
  expected = 0.0
  for study in np.flatnonzero(valid):
    for finding in range(F):
      p, label = 1 / (1 + np.exp(-logits[study, finding])), labels[study, finding]
      if label == UNCERTAIN:
        continue
      # A study that is positive with the rate 1 / (1 + weight) has the mean weight 1.
      scale = 2 * weight[finding] / (1 + weight[finding])
      expected -= (weight[finding] * np.log(p) if label == POSITIVE else np.log(1 - p)) / scale / F
  assert loss == pytest.approx(expected, rel=1e-5)


def test_an_average_study_has_the_rate_of_the_training_split(head):
  module, params, _ = head
  probabilities = module.apply({"params": params}, jnp.zeros((1, F)), method="probabilities")
  np.testing.assert_allclose(probabilities[0], 1 / (1 + np.arange(1.0, F + 1)), rtol=1e-5)


def test_logits_by_hand(head):
  module, params, (patches, responses, mask, embedding, train) = head

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"] + params[name]["bias"]

  def dense(x, name):
    return x @ params[name]["kernel"] + params[name]["bias"]
  expected = []
  for study in range(B):
    seen = np.asarray(patches[study])[np.asarray(mask[study])]
    evidence = seen + dense(np.maximum(dense(norm(seen, "norm_patches"), "hidden"), 0), "output")
    x = [norm(evidence.max(0), "norm_max"), norm(evidence.mean(0), "norm_mean"),
         norm(np.asarray(responses[study])[np.asarray(mask[study])].mean(0), "norm_responses"),
         norm(np.asarray(embedding[study]), "norm_embedding")]
    expected.append(dense(np.concatenate(x), "logits"))
  logits = module.apply({"params": params}, patches, responses, mask, embedding, train)
  np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-4, atol=1e-5)


def test_tokens_by_hand(head):
  module, params, _ = head
  logits = np.linspace(-3, 3, F, dtype=np.float32)[None]
  tokens = module.apply({"params": params}, jnp.asarray(logits), method="make_tokens")
  odds = np.exp(logits[0])
  for finding in range(F):
    # Odds of the balanced classes, and of the finding itself, whose weight is finding + 1: p = odds / (1 + odds).
    balanced, likely = (2 * o / (1 + o) - 1 for o in (odds[finding], odds[finding] / (finding + 1)))
    expected = (params["finding_embedding"][finding] + balanced * params["balanced_embedding"][finding]
                + likely * params["probability_embedding"][finding])
    np.testing.assert_allclose(tokens[0, finding], expected, rtol=1e-4, atol=1e-5)


def test_a_study_without_images_has_finite_logits(head):
  module, params, (patches, responses, mask, embedding, train) = head
  logits = module.apply({"params": params}, patches, responses, jnp.zeros_like(mask), embedding, train)
  assert np.isfinite(logits).all()


def test_masked_patches_change_nothing(head):
  module, params, (patches, responses, mask, embedding, train) = head
  other = jnp.where(mask[..., None], patches, 9.0), jnp.where(mask[..., None], responses, -9.0)
  np.testing.assert_allclose(module.apply({"params": params}, *other, mask, embedding, train),
                             module.apply({"params": params}, patches, responses, mask, embedding, train), rtol=1e-5)


def test_labels_train_the_logits_and_the_decoder_reads_them(head):
  module, params, inputs = head
  labels, valid = jnp.full((B, F), POSITIVE), jnp.ones(B, bool)

  def loss(params):
    return module.apply({"params": params}, module.apply({"params": params}, *inputs), labels, valid, method="loss")

  def read(params):
    return jnp.sum(module.apply({"params": params}, module.apply({"params": params}, *inputs),
                                method="make_tokens") ** 2)
  by_labels, by_decoder = jax.grad(loss)(params), jax.grad(read)(params)
  assert np.abs(by_labels["logits"]["kernel"]).max() > 0 and not np.any(by_labels["positive_weight"])
  assert not np.any(by_decoder["logits"]["kernel"]) and np.abs(by_decoder["balanced_embedding"]).max() > 0
