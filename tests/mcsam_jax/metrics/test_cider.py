"""CIDEr-D against a corpus agrees with pycocoevalcap, and is the utility of minimum Bayes risk decoding."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from pycocoevalcap.cider.cider import Cider
import pytest

from mcsam_jax.decoding.mbr import expect_over_reports, retrieve_most_probable
from mcsam_jax.metrics.cider import CiderCorpus, SCALE

REPORTS = [report.split() for report in (
    "the heart is normal in size . the lungs are clear .",
    "the heart is enlarged . there is a small effusion .",
    "no effusion is seen . the lungs are clear . the heart is normal .",
    "a large nodule is seen in the right lung .")]


def compute_pycoco_cider(references, hypotheses):
  _, scores = Cider().compute_score({i: [" ".join(report)] for i, report in enumerate(references)},
                                    {i: [" ".join(report)] for i, report in enumerate(hypotheses)})
  return scores


def compare_pairwise(corpus, reports):
  return corpus.compare_pairwise(corpus.encode(reports))


def compare_with_corpus(corpus, reports, rows=None):
  return corpus.compare_with_corpus(corpus.encode(reports), rows)


def random_reports(vocabulary_size, seed):
  rng = np.random.default_rng(seed)
  return [list(map(str, rng.integers(0, vocabulary_size, rng.integers(1, 25)))) for _ in range(40)]


def test_pairwise_similarity_is_cider_d():
  hypotheses = [REPORTS[1], REPORTS[2], REPORTS[0], REPORTS[3]]
  corpus = CiderCorpus(REPORTS)
  scores = [SCALE * compare_pairwise(corpus, [hypothesis, reference])[0, 1]
            for hypothesis, reference in zip(hypotheses, REPORTS)]
  np.testing.assert_allclose(scores, compute_pycoco_cider(REPORTS, hypotheses), rtol=1e-9)
  assert scores[3] == pytest.approx(10)                                            # compared with itself


def test_repeated_and_unseen_ngrams_are_counted_as_in_cider_d():
  reports, hypotheses = random_reports(4, seed=0), random_reports(5, seed=1)       # no reference has the fifth word
  corpus = CiderCorpus(reports)
  with_corpus = compare_with_corpus(corpus, hypotheses)
  np.testing.assert_allclose(SCALE * np.diag(with_corpus), compute_pycoco_cider(reports, hypotheses), rtol=1e-9)
  pairwise = compare_pairwise(corpus, hypotheses + reports)[:40, 40:]
  np.testing.assert_allclose(pairwise, with_corpus, rtol=1e-9, atol=1e-12)
  rows = np.array([7, 0, 7])
  np.testing.assert_allclose(compare_with_corpus(corpus, hypotheses, rows), with_corpus[:, rows], rtol=1e-12)


def test_empty_reports_have_no_similarity():
  corpus = CiderCorpus([*REPORTS, []])
  similarities = compare_pairwise(corpus, [[], REPORTS[0], []])
  assert similarities[1, 1] == pytest.approx(1)
  assert not similarities[[0, 2]].any() and not similarities[:, [0, 2]].any()
  assert not compare_with_corpus(corpus, [[]]).any()


def test_min_documents_gives_ngrams_of_a_single_document_a_weight():
  assert not compare_pairwise(CiderCorpus(REPORTS[:1]), REPORTS).any()              # every idf is log(1 / 1) = 0
  assert np.diag(compare_pairwise(CiderCorpus(REPORTS[:1], min_documents=2), REPORTS)) == pytest.approx(1)


def test_every_process_finds_the_same_bits():
  code = ("from test_cider import CiderCorpus, compare_pairwise, compare_with_corpus, random_reports\n"
          "corpus, hypotheses = CiderCorpus(random_reports(30, 0)), random_reports(40, 1)\n"
          "for result in compare_pairwise(corpus, hypotheses), compare_with_corpus(corpus, hypotheses):\n"
          "  print(result.tobytes().hex())")
  here = pathlib.Path(__file__)
  path = os.pathsep.join(map(str, (here.parents[3], here.parent)))
  outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}).stdout for seed in "123"}
  assert len(outputs) == 1


def test_the_sample_that_resembles_the_others_is_selected():
  corpus = CiderCorpus(REPORTS)
  samples = [REPORTS[3], REPORTS[0], REPORTS[2], "the heart is normal . the lungs are clear .".split()]
  select_sample = lambda reports: expect_over_reports(compare_pairwise(corpus, reports)).argmax()
  assert select_sample(samples) in (1, 2, 3)
  assert select_sample([REPORTS[1], REPORTS[0], REPORTS[0]]) == 1
  assert select_sample([[], REPORTS[0], REPORTS[0]]) == 1          # not the empty one


def test_retrieved_training_reports_change_the_selection():
  corpus, samples = CiderCorpus(REPORTS), [REPORTS[0], REPORTS[0], REPORTS[1]]
  indices, weights = retrieve_most_probable(np.array([0.1, 5.0, 0.1, 0.1]))                 # the second report
  utilities, retrieved = compare_pairwise(corpus, samples), compare_with_corpus(corpus, samples, indices)
  selected = [expect_over_reports(utilities, retrieved, weights, weight).argmax() for weight in (0.0, 0.1, 0.9, 1.0)]
  assert selected == [0, 0, 2, 2]


def test_overlap_by_hand():
  corpus = CiderCorpus([["a", "b", "a"], ["c"]], cider_weight=0.0, overlap_weight=1.0)
  # "a a b" has a, a, b and aa, ab; "a b a" has a, b, a and ab, ba: three of three words and one of two bigrams match.
  np.testing.assert_allclose(compare_with_corpus(corpus, [["a", "a", "b"], ["c"], []]),
                             [[(3 / 3 + 1 / 2) / 4, 0], [0, 1 / 4], [0, 0]])
  np.testing.assert_allclose(compare_pairwise(corpus, [["x", "y"], ["x"]]), [[2 / 4, 1 / 4 / np.sqrt(2)],
                                                                           [1 / 4 / np.sqrt(2), 1 / 4]])


def test_overlap_weighs_recall_by_hand():
  corpus = CiderCorpus([["a", "b", "c", "d"]], cider_weight=0.0, overlap_weight=1.0, overlap_recall=0.75)
  # "a b" matches two of its two words and its one bigram, of four words and three bigrams in the reference.
  np.testing.assert_allclose(compare_with_corpus(corpus, [["a", "b"]]), [[((2 / 4) ** 0.75 + (1 / 3) ** 0.75) / 4]])
  pairwise = compare_pairwise(corpus, [["a", "b"], ["a", "b", "c", "d"]])
  np.testing.assert_allclose(pairwise[0, 1], ((2 / 4) ** 0.75 + (1 / 3) ** 0.75) / 4)
  np.testing.assert_allclose(pairwise[1, 0], ((2 / 4) ** 0.25 + (1 / 3) ** 0.25) / 4)


def test_similarities_are_weighted_sums():
  reports, hypotheses = random_reports(20, 0), random_reports(15, 1)
  cider, overlap, both = (CiderCorpus(reports, 1, *weights) for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)))
  for compare in ("compare_with_corpus", "compare_pairwise"):
    parts = [getattr(corpus, compare)(corpus.encode(hypotheses)) for corpus in (cider, overlap, both)]
    assert parts[0].any() and parts[1].any()
    np.testing.assert_allclose(0.5 * parts[0] + 2 * parts[1], parts[2])
