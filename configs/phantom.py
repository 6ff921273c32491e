"""Synthetic chest X-rays ("phantoms"): a small model that trains on a CPU in minutes and needs no data set."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """Returns the config of the demo and of most tests."""
  config = default.get_config()
  config.data.update({"name": "phantom", "image_size": 192})
  config.encoder.update({"name": "efficientnet_lite0", "weights": "data/efficientnet_lite0.npz", "frozen": True})
  config.eval.labeler = "phantom"         # reads the phantoms' own wording, without error
  return config
