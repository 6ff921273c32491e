"""Images unlike the training images fall below the threshold, and almost no val image does."""

import numpy as np

from mcsam_jax.inference.ood import fit_detector


def test_nearly_all_val_images_reach_the_threshold():
  """Train and val images have one direction in common; their angles to it are known."""
  rng = np.random.default_rng(0)
  draw = lambda count, spread: np.eye(64)[0] + spread * rng.normal(size=(count, 64)) / 8
  detector = fit_detector(draw(400, 0.5), draw(2000, 0.5))
  assert (detector.compute_similarity(draw(2000, 0.5)) < detector.threshold).mean() < 0.02
  assert np.all(detector.compute_similarity(np.eye(64)[1:]) < detector.threshold)          # orthogonal to all
  scaled = 5 * detector.reference[:3].astype(np.float32)
  assert np.all(detector.compute_similarity(scaled) > detector.threshold)                  # lengths don't matter


def test_similarity_is_the_mean_cosine_to_the_nearest_neighbors():
  detector = fit_detector(np.eye(3), np.eye(3)[:1])                      # fewer images than neighbors: the mean of all
  np.testing.assert_allclose(detector.compute_similarity(np.eye(3)[:1]), [1 / 3], atol=1e-6)
