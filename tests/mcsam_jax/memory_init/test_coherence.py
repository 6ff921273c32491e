import numpy as np
import pytest

from mcsam_jax.memory_init.coherence import compute_npmi


def test_words_always_together_score_one_and_words_never_together_minus_one():
  reports = ["rod screw", "rod screw", "lung", "heart"]
  topics = [["rod", "screw"], ["lung", "heart"], ["lung", "unheard"]]
  np.testing.assert_allclose(compute_npmi(topics, reports), [1, -1, -1])


def test_independent_words_score_zero():
  reports = ["a b", "a", "b", "c"]               # p(a) = p(b) = 1/2, p(a, b) = 1/4
  assert compute_npmi([["a", "b"]], reports)[0] == pytest.approx(0)


def test_coherence_is_the_mean_over_pairs():
  reports = ["a b", "a b", "a c", "d", "d", "d", "d", "d"]
  ab = np.log((2 / 8) / (3 / 8 * 2 / 8)) / -np.log(2 / 8)
  ac = np.log((1 / 8) / (3 / 8 * 1 / 8)) / -np.log(1 / 8)
  assert compute_npmi([["a", "b", "c"]], reports)[0] == pytest.approx((ab + ac - 1) / 3)


def test_repeating_a_word_inside_a_report_changes_nothing():
  assert compute_npmi([["a", "b"]], ["a a a b", "a", "c"]) == compute_npmi([["a", "b"]], ["a b", "a", "c"])


def test_topics_without_pairs_score_zero():
  assert compute_npmi([["a"], []], ["a b"]).tolist() == [0, 0]
