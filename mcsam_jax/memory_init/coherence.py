"""Topic coherence: normalized pointwise mutual information (NPMI) of a topic's words.

NPMI (Bouma, 2009) is averaged over all pairs of a topic's words. Two words
co-occur if a report contains both (Lau, Newman & Baldwin, EACL 2014).
"""

import itertools

import numpy as np

from mcsam_jax.memory_init.word_vectors import count_words


def compute_npmi(topics: list[list[str]], reports: list[str]) -> np.ndarray:
  """Returns the coherence of each topic, [K], in [-1, 1].

  A pair of words that never co-occur scores -1, a pair that always occur together 1,
  and an independent pair 0. Words that are in no report never co-occur with others.
  Topics of fewer than two words have no pairs and score 0.
  """
  words = tuple(sorted({word for topic in topics for word in topic}))
  index = {word: i for i, word in enumerate(words)}
  contains = count_words(reports, words).astype(bool).astype(np.float64)  # [R, W]
  joint = (contains.T @ contains).toarray() / len(reports)              # [W, W]
  marginal = joint.diagonal()
  with np.errstate(divide="ignore", invalid="ignore"):
    scores = np.log(joint / np.outer(marginal, marginal)) / -np.log(joint)
  scores = np.where(joint == 0, -1.0, np.where(joint == 1, 1.0, scores))
  pairs = [[scores[index[a], index[b]] for a, b in itertools.combinations(topic, 2)] for topic in topics]
  return np.array([np.mean(topic_scores) if topic_scores else 0.0 for topic_scores in pairs])
