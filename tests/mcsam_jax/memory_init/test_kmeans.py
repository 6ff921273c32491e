import numpy as np

from mcsam_jax.memory_init.kmeans import compute_kmeans_topics, sample_random_topics

CORNERS = np.eye(3)


def _clusters(rng):
  points = np.repeat(CORNERS, 20, axis=0) + 0.05 * rng.standard_normal((60, 3))
  return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_clusters_are_recovered():
  centers = compute_kmeans_topics(_clusters(np.random.default_rng(0)), np.ones(60), 3, np.random.default_rng(1))
  nearest = centers @ CORNERS.T
  assert sorted(nearest.argmax(1)) == [0, 1, 2]
  assert nearest.max(1).min() > 0.99


def test_centers_are_weighted_means():
  vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
  center = compute_kmeans_topics(vectors, np.array([3.0, 1.0]), 1, np.random.default_rng(0))
  np.testing.assert_allclose(center, [[3 / np.sqrt(10), 1 / np.sqrt(10)]])


def test_more_centers_than_words_are_allowed():
  centers = compute_kmeans_topics(CORNERS, np.ones(3), 5, np.random.default_rng(0))
  assert centers.shape == (5, 3) and np.allclose(np.linalg.norm(centers, axis=1), 1)


def test_random_topics_have_no_preferred_direction():
  topics = sample_random_topics(500, 16, np.random.default_rng(0))
  np.testing.assert_allclose(np.linalg.norm(topics, axis=1), 1)
  assert np.linalg.norm(topics.mean(0)) < 0.15
