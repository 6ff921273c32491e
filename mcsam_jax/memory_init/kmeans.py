"""The plain alternatives to transported topics: k-means of the word vectors, and noise."""

import numpy as np

MAX_ITERATIONS = 100


def compute_kmeans_topics(vectors: np.ndarray, weights: np.ndarray, num_topics: int,
                  rng: np.random.Generator) -> np.ndarray:
  """Returns the unit centres [K, D] of spherical k-means over words, each weighing as much as its mass.

  Args:
    vectors: [W, D], of length one.
    weights: [W], mass of each word in all reports.
    num_topics: K; more than there are words leaves centres on the same word.
    rng: draws the first centres.
  """
  centers = sample_initial_centers(vectors, weights, num_topics, rng)
  nearest = None
  for _ in range(MAX_ITERATIONS):
    previous, nearest = nearest, np.argmax(vectors @ centers.T, 1)          # [W]
    if previous is not None and (previous == nearest).all():
      break
    sums = np.zeros_like(centers)
    np.add.at(sums, nearest, weights[:, None] * vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centers = np.where(lengths > 1e-9, sums / np.maximum(lengths, 1e-9), centers)   # an empty cluster stays
  return centers


def sample_random_topics(num_topics: int, width: int, rng: np.random.Generator) -> np.ndarray:
  """Returns K directions [K, D] that know nothing of words."""
  topics = rng.standard_normal((num_topics, width))
  return topics / np.linalg.norm(topics, axis=1, keepdims=True)


def sample_initial_centers(vectors: np.ndarray, weights: np.ndarray, num_topics: int,
                 rng: np.random.Generator) -> np.ndarray:
  """Returns the vectors [K, D] of words drawn by weight times distance from those drawn already.

  This is the start of k-means++ (Arthur & Vassilvitskii, SODA 2007).
  """
  centers = vectors[[rng.choice(len(vectors), p=weights / weights.sum())]]
  while len(centers) < num_topics:
    distances = np.maximum(1 - (vectors @ centers.T).max(1), 0) * weights
    share = distances if distances.sum() > 1e-9 else weights       # every word is a centre: draw again
    centers = np.concatenate([centers, vectors[[rng.choice(len(vectors), p=share / share.sum())]]])
  return centers
