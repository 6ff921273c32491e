"""How well the words of a topic belong together, judged by the reports themselves.

Coherence is the normalised pointwise mutual information (Bouma, 2009) of each pair
of a topic's words, averaged over pairs, where two words meet when one report holds
both (Lau, Newman & Baldwin, EACL 2014).
"""

import itertools

import numpy as np

from mcsam_jax.memory_init.word_vectors import count_words


def compute_npmi(topics: list[list[str]], reports: list[str]) -> np.ndarray:
  """Returns the coherence of each topic, [K], in [-1, 1].

  A pair that never meets counts -1, one that never parts 1, an independent one 0.
  A word that stands in no report never meets another; a topic of fewer than two
  words has no pairs and counts 0.
  """
  words = tuple(sorted({word for topic in topics for word in topic}))
  index = {word: i for i, word in enumerate(words)}
  held = (count_words(reports, words) > 0).astype(np.float64)       # [R, W]
  joint = (held.T @ held).toarray() / len(reports)            # [W, W]
  alone = joint.diagonal()
  with np.errstate(divide="ignore", invalid="ignore"):
    scores = np.log(joint / np.outer(alone, alone)) / -np.log(joint)
  scores = np.where(joint == 0, -1.0, np.where(joint == 1, 1.0, scores))
  pairs = [[scores[index[a], index[b]] for a, b in itertools.combinations(topic, 2)] for topic in topics]
  return np.array([np.mean(of_topic) if of_topic else 0.0 for of_topic in pairs])
