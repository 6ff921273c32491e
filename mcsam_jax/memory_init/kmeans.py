"""Baselines for topics by optimal transport: k-means of the word vectors, and random vectors."""

import numpy as np

MAX_ITERATIONS = 100


def compute_kmeans_topics(vectors: np.ndarray, weights: np.ndarray, num_topics: int,
                          rng: np.random.Generator) -> np.ndarray:
  """Returns the unit centers [K, D] of weighted spherical k-means over word vectors.

  Args:
    vectors: unit word vectors [W, D].
    weights: mass of each word over all reports [W].
    num_topics: K; if it exceeds the number of words, some centers are equal.
    rng: samples the initial centers.
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
    centers = np.where(lengths > 1e-9, sums / np.maximum(lengths, 1e-9), centers)   # an empty cluster keeps its center
  return centers


def sample_random_topics(num_topics: int, width: int, rng: np.random.Generator) -> np.ndarray:
  """Returns K random unit vectors [K, D]."""
  topics = rng.standard_normal((num_topics, width))
  return topics / np.linalg.norm(topics, axis=1, keepdims=True)


def sample_initial_centers(vectors: np.ndarray, weights: np.ndarray, num_topics: int,
                           rng: np.random.Generator) -> np.ndarray:
  """Returns the vectors [K, D] of words sampled by weight times distance to the centers sampled so far.

  This is the initialization of k-means++ (Arthur & Vassilvitskii, SODA 2007).
  """
  centers = vectors[[rng.choice(len(vectors), p=weights / weights.sum())]]
  while len(centers) < num_topics:
    distances = np.maximum(1 - (vectors @ centers.T).max(1), 0) * weights
    scores = distances if distances.sum() > 1e-9 else weights       # all words are centers: repeat some
    centers = np.concatenate([centers, vectors[[rng.choice(len(vectors), p=scores / scores.sum())]]])
  return centers
