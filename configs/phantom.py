"""Synthetic chest X-rays ("phantoms"): a small model that trains on a CPU in minutes and needs no data set."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """Returns the config of the demo and of most tests."""
  config = default.get_config()
  config.data.update({"name": "phantom", "image_size": 192})
  config.encoder.update({"name": "efficientnet_lite0", "weights": "data/efficientnet_lite0.npz", "frozen": True})
  config.memory_init.steps = 100
  # Of settings that take a CPU equally long, those with the best scores on val: in so few steps nothing overfits.
  config.model.dropout = 0.0
  config.optimizer.learning_rate = 3e-3
  config.train.update({"num_steps": 400, "eval_every": 400, "log_term_norms": False})
  config.eval.labeler = "phantom"         # reads the phantoms' own wording, without error
  return config
