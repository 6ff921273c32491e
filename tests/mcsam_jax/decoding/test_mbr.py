"""Agreement is CIDEr-D, and the report that most others resemble is chosen."""

import numpy as np
from pycocoevalcap.cider.cider import Cider
import pytest

from mcsam_jax.decoding.mbr import Consensus

REPORTS = [report.split() for report in (
    "the heart is normal in size . the lungs are clear .",
    "the heart is enlarged . there is a small effusion .",
    "no effusion is seen . the lungs are clear . the heart is normal .",
    "a large nodule is seen in the right lung .")]


def test_agreement_is_cider_d():
  hypotheses = [REPORTS[1], REPORTS[2], REPORTS[0], REPORTS[3]]
  _, expected = Cider().compute_score({i: [" ".join(report)] for i, report in enumerate(REPORTS)},
                                      {i: [" ".join(report)] for i, report in enumerate(hypotheses)})
  consensus = Consensus(REPORTS)
  ours = [10 * consensus.agreement([hypothesis, reference])[0, 1] for hypothesis, reference in zip(hypotheses, REPORTS)]
  np.testing.assert_allclose(ours, expected, rtol=1e-9)
  assert ours[3] == pytest.approx(10)                                  # itself


def test_n_grams_that_stand_several_times_are_counted_as_cider_d_does():
  rng = np.random.default_rng(0)
  reports = [list(map(str, rng.integers(0, 4, rng.integers(1, 25)))) for _ in range(40)]
  hypotheses = [list(map(str, rng.integers(0, 5, rng.integers(1, 25)))) for _ in range(40)]   # word 4 is in no reference
  _, expected = Cider().compute_score({i: [" ".join(report)] for i, report in enumerate(reports)},
                                      {i: [" ".join(report)] for i, report in enumerate(hypotheses)})
  consensus = Consensus(reports)
  among_train = consensus.agreement_with_train(hypotheses, np.arange(40))
  np.testing.assert_allclose(10 * np.diag(among_train), expected, rtol=1e-9)
  among_all = consensus.agreement(hypotheses + reports)[:40, 40:]
  np.testing.assert_allclose(among_all, among_train, rtol=1e-9, atol=1e-12)


def test_the_training_reports_vote_with_their_share():
  consensus = Consensus(REPORTS)
  draws = [REPORTS[0], REPORTS[0], REPORTS[1]]
  likelihood = np.array([0.1, 5.0, 0.1, 0.1])                          # the second training report, any scale
  assert consensus.best(draws) == consensus.best(draws, likelihood, 0.0) == 0
  assert consensus.best(draws, likelihood, 1.0) == 2
  assert consensus.best(draws, likelihood, 0.9) == 2 and consensus.best(draws, likelihood, 0.1) == 0


def test_the_report_that_the_others_resemble_is_chosen():
  candidates = [REPORTS[3], REPORTS[0], REPORTS[2], "the heart is normal . the lungs are clear .".split()]
  assert Consensus(REPORTS).best(candidates) in (1, 2, 3)
  assert Consensus(REPORTS).best([REPORTS[1], REPORTS[0], REPORTS[0]]) == 1


def test_an_empty_candidate_is_never_chosen_over_words():
  assert Consensus(REPORTS).best([[], REPORTS[0], REPORTS[0]]) == 1
