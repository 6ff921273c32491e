"""Agreement is CIDEr-D, and the report that most others resemble is chosen."""

import numpy as np
from pycocoevalcap.cider.cider import Cider
import pytest

from mcsam_jax.decoding.consensus import Consensus

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


def test_the_report_that_the_others_resemble_is_chosen():
  candidates = [REPORTS[3], REPORTS[0], REPORTS[2], "the heart is normal . the lungs are clear .".split()]
  assert Consensus(REPORTS).best(candidates) in (1, 2, 3)
  assert Consensus(REPORTS).best([REPORTS[1], REPORTS[0], REPORTS[0]]) == 1


def test_an_empty_candidate_is_never_chosen_over_words():
  assert Consensus(REPORTS).best([[], REPORTS[0], REPORTS[0]]) == 1
