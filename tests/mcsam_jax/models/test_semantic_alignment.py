"""InfoNCE with targets that know equal reports, over all pairs of a batch in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models import semantic_alignment
from mcsam_jax.models.semantic_alignment import make_pairs, SemanticAlignment, target_mass, text_hash


def pairs(tokens=None, labels=None, valid=None, count=5):
  tokens = jnp.arange(count)[:, None] if tokens is None else tokens
  labels = jnp.zeros((len(tokens), 14)) if labels is None else labels
  return make_pairs(tokens, labels, jnp.ones(len(tokens), bool) if valid is None else valid)


def align(image, report, known, targets="same_text"):
  module = SemanticAlignment(0.07, targets)
  return module.apply(module.init(jax.random.key(0), image, report, known), image, report, known)


def codes(seed, count=5, width=7):
  return jax.random.normal(jax.random.key(seed), (count, width))


def plain(image, report, mass, valid):
  """Returns the loss written down as it stands in papers, of float64 codes."""
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  image, report, mass = image[valid], report[valid], mass[valid][:, valid]
  mass = mass / mass.sum(-1, keepdims=True)
  logits = unit(image) @ unit(report).T / 0.07
  rows = (mass * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
  columns = (mass * (logits.T - np.log(np.exp(logits.T).sum(1, keepdims=True)))).sum(1)
  return -(rows + columns).mean() / 2


@pytest.mark.parametrize("pairs_at_once", [1024, 4 * 9, 1])
def test_loss_equals_a_plain_computation_whatever_the_block(pairs_at_once, monkeypatch):
  monkeypatch.setattr(semantic_alignment, "MOST_PAIRS", pairs_at_once)
  text, valid = np.array([0, 1, 0, 2, 3, 1, 4, 0, 5]), np.arange(9) != 4
  image, report = (np.asarray(codes(seed, 9), np.float64) for seed in (0, 1))
  known = pairs(jnp.asarray(text)[:, None], valid=jnp.asarray(valid))
  expected = plain(image, report, (text[:, None] == text).astype(float), valid)
  np.testing.assert_allclose(align(codes(0, 9), codes(1, 9), known).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("targets", ["identity", "same_text", "label_similarity"])
def test_gradients_are_those_of_the_plain_loss(targets):
  """Written down without blocks, and left to autodiff; of codes, of the temperature, beside rows that only pad."""
  valid = jnp.arange(9) != 4
  known = pairs(jnp.array([0, 1, 0, 2, 3, 1, 4, 0, 5])[:, None], (codes(3, 9, 14) > 0.3).astype(float), valid)
  module = SemanticAlignment(0.07, targets)

  def loss(image, report, log_scale):
    return module.apply({"params": {"log_scale": log_scale}}, image, report, known).loss

  def autodiff(image, report, log_scale):
    logits = jnp.exp(log_scale) * semantic_alignment.normalise(image) @ semantic_alignment.normalise(report).T
    mass = jnp.where(valid, target_mass(targets, known, known), 0)
    mass = mass / jnp.maximum(mass.sum(-1, keepdims=True), 1e-9)
    rows = sum((mass * jax.nn.log_softmax(jnp.where(valid, one, -1e30))).sum(-1) for one in (logits, logits.T))
    return -jnp.where(valid, rows, 0).sum() / 2 / valid.sum()

  arguments = codes(0, 9), codes(1, 9), jnp.log(8.0)
  for ours, theirs in zip(jax.grad(loss, (0, 1, 2))(*arguments), jax.grad(autodiff, (0, 1, 2))(*arguments)):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_codes_of_half_precision_are_compared_in_it_and_summed_in_float32():
  image, report = (code.astype(jnp.bfloat16) for code in (codes(0, 12), codes(1, 12)))
  known = pairs(count=12)
  found, gradient = jax.value_and_grad(lambda image: align(image, report, known).loss)(image)
  expected, theirs = jax.value_and_grad(lambda image: align(image, report.astype(jnp.float32), known).loss)(
      image.astype(jnp.float32))
  assert found.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(found, expected, rtol=5e-3)
  np.testing.assert_allclose(gradient.astype(jnp.float32), theirs, atol=0.02 * np.abs(theirs).max())


def test_the_gradient_of_blocks_is_that_of_one(monkeypatch):
  known, weights = pairs(count=12), []
  for pairs_at_once in (1024, 5 * 12):
    monkeypatch.setattr(semantic_alignment, "MOST_PAIRS", pairs_at_once)
    weights.append(jax.grad(lambda image, report: align(image, report, known).loss, (0, 1))(codes(0, 12), codes(1, 12)))
  jax.tree.map(lambda whole, parts: np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-6), *weights)


def test_equal_codes_give_chance_and_matching_codes_give_almost_nothing():
  same = jnp.ones((6, 3))
  np.testing.assert_allclose(align(same, same, pairs(count=6)).loss, np.log(6), rtol=1e-6)
  matching = align(jnp.eye(6), jnp.eye(6), pairs(count=6))
  assert matching.loss < 1e-4 and matching.accuracy == 1


def test_padding_rows_take_no_part():
  image, report = codes(0), codes(1)
  padded = align(jnp.concatenate([image, codes(2)]), jnp.concatenate([report, codes(3)]),
                 pairs(count=10, valid=jnp.arange(10) < 5))
  alone = align(image, report, pairs())
  np.testing.assert_allclose(padded.loss, alone.loss, rtol=1e-6)
  np.testing.assert_allclose(padded.accuracy, alone.accuracy)


@pytest.mark.parametrize("targets", ["identity", "same_text"])
def test_any_report_with_the_same_text_counts_as_right(targets):
  """Image 0 is most like report 1, whose text is its own; image 2 is most like report 3, whose text isn't."""
  image = jnp.array([[1., 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
  report = jnp.array([[.9, 1, 0], [1, 0, 0], [0, .9, 1], [0, 1, 0]])
  assert align(image, report, pairs(jnp.array([[7], [7], [8], [9]])), targets).accuracy == 0.75


def test_same_text_shares_mass_between_equal_reports_only():
  known = pairs(jnp.array([[5, 6, 7, 2], [5, 7, 6, 2], [5, 6, 7, 2], [4, 4, 2, -1]]))
  np.testing.assert_array_equal(target_mass("same_text", known, known),
                                [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
  np.testing.assert_array_equal(target_mass("identity", known, known), np.eye(4))


def test_hashes_differ_for_orders_and_lengths():
  rng = np.random.default_rng(0)
  tokens = np.unique(rng.integers(-1, 4, (3000, 8)), axis=0)
  hashes = np.asarray(text_hash(jnp.asarray(tokens)))
  for column in hashes.T:                                       # each alone
    assert len(np.unique(column)) == len(tokens)


def test_label_similarity_draws_studies_with_equal_findings_together():
  known = pairs(labels=jnp.array([[1., 0, 1], [1, 0, 1], [0, 1, 0]]), count=3)
  e = np.e
  np.testing.assert_allclose(target_mass("label_similarity", known, known), [[e, e, 1], [e, e, 1], [1, 1, e]],
                             rtol=1e-5)


def test_unknown_targets_are_refused():
  with pytest.raises(ValueError, match="same_text"):
    target_mass("other", pairs(), pairs())
