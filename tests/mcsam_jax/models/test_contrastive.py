"""Target distributions of the contrastive loss, and the token hashes that compare reports."""

import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.contrastive import ContrastiveTargets, hash_tokens, target_weights


def make_targets(tokens=None, labels=None, count=5):
  tokens = jnp.arange(count)[:, None] if tokens is None else tokens
  labels = jnp.zeros((len(tokens), 14)) if labels is None else labels
  return ContrastiveTargets.create(tokens, labels, jnp.ones(len(tokens), bool))


def test_same_text_weights_equal_reports_only():
  targets = make_targets(jnp.array([[5, 6, 7, 2], [5, 7, 6, 2], [5, 6, 7, 2], [4, 4, 2, -1]]))
  np.testing.assert_array_equal(target_weights("same_text", targets, targets),
                                [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]])
  np.testing.assert_array_equal(target_weights("identity", targets, targets), np.eye(4))


def test_label_similarity_weights_studies_by_their_common_findings():
  targets = make_targets(labels=jnp.array([[1., 0, 1], [1, 0, 1], [0, 1, 0]]), count=3)
  e = np.e
  np.testing.assert_allclose(target_weights("label_similarity", targets, targets), [[e, e, 1], [e, e, 1], [1, 1, e]],
                             rtol=1e-5)


def test_unknown_targets_are_rejected():
  with pytest.raises(ValueError, match="align_targets.*'other'"):
    target_weights("other", make_targets(), make_targets())


def test_hashes_depend_on_order_and_length():
  rng = np.random.default_rng(0)
  tokens = np.unique(rng.integers(-1, 4, (3000, 8)), axis=0)
  hashes = np.asarray(hash_tokens(jnp.asarray(tokens)))
  for column in hashes.T:                                       # each alone
    assert len(np.unique(column)) == len(tokens)
