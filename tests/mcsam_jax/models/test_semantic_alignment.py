"""InfoNCE with targets that know equal reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.semantic_alignment import SemanticAlignment, alignment_targets, text_hash


def align(image, report, targets, valid=None):
  module = SemanticAlignment(0.07)
  valid = jnp.ones(len(image), bool) if valid is None else valid
  variables = module.init(jax.random.key(0), image, report, targets, valid)
  return module.apply(variables, image, report, targets, valid)


def codes(seed, count=5, width=7):
  return jax.random.normal(jax.random.key(seed), (count, width))


def test_loss_equals_a_plain_computation():
  image, report = np.asarray(codes(0), np.float64), np.asarray(codes(1), np.float64)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  logits = unit(image) @ unit(report).T / 0.07
  rows = np.diag(logits) - np.log(np.exp(logits).sum(1))
  columns = np.diag(logits) - np.log(np.exp(logits).sum(0))
  np.testing.assert_allclose(align(codes(0), codes(1), jnp.eye(5)).loss, -(rows + columns).mean() / 2, rtol=1e-5)


def test_equal_codes_give_chance_and_matching_codes_give_almost_nothing():
  same = jnp.ones((6, 3))
  np.testing.assert_allclose(align(same, same, jnp.eye(6)).loss, np.log(6), rtol=1e-6)
  matching = align(jnp.eye(6), jnp.eye(6), jnp.eye(6))
  assert matching.loss < 1e-4 and matching.accuracy == 1


def test_padding_rows_take_no_part():
  image, report = codes(0), codes(1)
  padded = align(jnp.concatenate([image, codes(2)]), jnp.concatenate([report, codes(3)]), jnp.eye(10),
                 jnp.arange(10) < 5)
  np.testing.assert_allclose(padded.loss, align(image, report, jnp.eye(5)).loss, rtol=1e-6)


def test_same_text_shares_mass_between_equal_reports_only():
  tokens = jnp.array([[5, 6, 7, 2], [5, 7, 6, 2], [5, 6, 7, 2], [4, 4, 2, 0]])
  np.testing.assert_allclose(alignment_targets("same_text", tokens, None),
                             [[.5, 0, .5, 0], [0, 1, 0, 0], [.5, 0, .5, 0], [0, 0, 0, 1]])


def test_hash_differs_for_orders_and_lengths():
  rng = np.random.default_rng(0)
  tokens = np.unique(rng.integers(0, 4, (3000, 8)), axis=0)
  assert len(np.unique(np.asarray(text_hash(jnp.asarray(tokens))))) == len(tokens)


def test_label_similarity_draws_studies_with_equal_findings_together():
  labels = jnp.array([[1., 0, 1], [1, 0, 1], [0, 1, 0]])
  targets = np.asarray(alignment_targets("label_similarity", jnp.zeros((3, 2), int), labels))
  e = np.e
  np.testing.assert_allclose(targets[0], np.array([e, e, 1]) / (2 * e + 1), rtol=1e-5)


def test_unknown_targets_are_refused():
  with pytest.raises(ValueError, match="same_text"):
    alignment_targets("other", jnp.zeros((2, 2), int), None)
