"""InfoNCE over all pairs of a batch in blocks, against the formula and against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models import contrastive
from mcsam_jax.models.contrastive import l2_normalize, target_weights
from mcsam_jax.models.semantic_alignment import SemanticAlignment


def make_targets(tokens=None, labels=None, valid=None, count=5):
  tokens = jnp.arange(count)[:, None] if tokens is None else tokens
  labels = jnp.zeros((len(tokens), 14)) if labels is None else labels
  return contrastive.ContrastiveTargets.create(tokens, labels, jnp.ones(len(tokens), bool) if valid is None else valid)


def align(image, report, targets, kind="same_text"):
  """Returns the outcome of a module with fresh parameters, compiled as one program for this call."""
  module = SemanticAlignment(0.07, kind)
  run = lambda *inputs: module.apply(module.init(jax.random.key(0), *inputs), *inputs)
  return jax.jit(run)(image, report, targets)


def embeddings(seed, count=5, width=7):
  return jax.random.normal(jax.random.key(seed), (count, width))


def plain_loss(image, report, weights, valid):
  """Returns the loss as papers define it, for float64 embeddings."""
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  image, report, weights = image[valid], report[valid], weights[valid][:, valid]
  weights = weights / weights.sum(-1, keepdims=True)
  logits = unit(image) @ unit(report).T / 0.07
  rows = (weights * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
  columns = (weights * (logits.T - np.log(np.exp(logits.T).sum(1, keepdims=True)))).sum(1)
  return -(rows + columns).mean() / 2


@pytest.mark.parametrize("block_pairs", [1024, 4 * 9, 1])
def test_loss_equals_the_formula_for_any_block_size(block_pairs, monkeypatch):
  monkeypatch.setattr(contrastive, "MAX_BLOCK_PAIRS", block_pairs)
  text, valid = np.array([0, 1, 0, 2, 3, 1, 4, 0, 5]), np.arange(9) != 4
  image, report = (np.asarray(embeddings(seed, 9), np.float64) for seed in (0, 1))
  targets = make_targets(jnp.asarray(text)[:, None], valid=jnp.asarray(valid))
  expected = plain_loss(image, report, (text[:, None] == text).astype(float), valid)
  np.testing.assert_allclose(align(embeddings(0, 9), embeddings(1, 9), targets).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["identity", "same_text", "label_similarity"])
def test_gradients_equal_autodiff_of_the_formula(kind):
  """Gradients of the embeddings and of the temperature, in a batch with a padding row."""
  valid = jnp.arange(9) != 4
  labels = (embeddings(3, 9, 14) > 0.3).astype(float)
  targets = make_targets(jnp.array([0, 1, 0, 2, 3, 1, 4, 0, 5])[:, None], labels, valid)
  module = SemanticAlignment(0.07, kind)

  def loss(image, report, log_scale):
    return module.apply({"params": {"log_scale": log_scale}}, image, report, targets).loss

  def autodiff_loss(image, report, log_scale):
    logits = jnp.exp(log_scale) * l2_normalize(image) @ l2_normalize(report).T
    weights = jnp.where(valid, target_weights(kind, targets, targets), 0)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-9)
    rows = sum((weights * jax.nn.log_softmax(jnp.where(valid, one, -1e30))).sum(-1) for one in (logits, logits.T))
    return -jnp.where(valid, rows, 0).sum() / 2 / valid.sum()

  arguments = embeddings(0, 9), embeddings(1, 9), jnp.log(8.0)
  gradients = [jax.jit(jax.grad(function, (0, 1, 2)))(*arguments) for function in (loss, autodiff_loss)]
  for actual, expected in zip(*gradients):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_embeddings_are_multiplied_in_it_and_summed_in_float32():
  image, report = (embedding.astype(jnp.bfloat16) for embedding in (embeddings(0, 12), embeddings(1, 12)))
  targets = make_targets(count=12)
  compute = jax.jit(jax.value_and_grad(lambda image, report: align(image, report, targets).loss))
  loss, gradient = compute(image, report)
  expected, expected_gradient = compute(image.astype(jnp.float32), report.astype(jnp.float32))
  assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(loss, expected, rtol=5e-3)
  np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient,
                             atol=0.02 * np.abs(expected_gradient).max())


def test_gradient_does_not_depend_on_the_block_size(monkeypatch):
  targets, gradients = make_targets(count=12), []
  for block_pairs in (1024, 5 * 12):
    monkeypatch.setattr(contrastive, "MAX_BLOCK_PAIRS", block_pairs)
    loss = lambda image, report: align(image, report, targets).loss
    gradients.append(jax.jit(jax.grad(loss, (0, 1)))(embeddings(0, 12), embeddings(1, 12)))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), *gradients)


def test_equal_embeddings_give_chance_and_matching_embeddings_almost_zero_loss():
  same = jnp.ones((6, 3))
  np.testing.assert_allclose(align(same, same, make_targets(count=6)).loss, np.log(6), rtol=1e-6)
  matching = align(jnp.eye(6), jnp.eye(6), make_targets(count=6))
  assert matching.loss < 1e-4 and matching.accuracy == 1


def test_padding_rows_are_ignored():
  image, report = embeddings(0), embeddings(1)
  padded = align(jnp.concatenate([image, embeddings(2)]), jnp.concatenate([report, embeddings(3)]),
                 make_targets(count=10, valid=jnp.arange(10) < 5))
  alone = align(image, report, make_targets())
  np.testing.assert_allclose(padded.loss, alone.loss, rtol=1e-6)
  np.testing.assert_allclose(padded.accuracy, alone.accuracy)


@pytest.mark.parametrize("kind", ["identity", "same_text"])
def test_any_report_with_the_same_text_is_a_hit(kind):
  """Image 0 is most similar to report 1, which has the text of its own; image 2 to report 3, which doesn't."""
  image = jnp.array([[1., 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
  report = jnp.array([[.9, 1, 0], [1, 0, 0], [0, .9, 1], [0, 1, 0]])
  assert align(image, report, make_targets(jnp.array([[7], [7], [8], [9]])), kind).accuracy == 0.75
