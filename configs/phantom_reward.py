"""Reward fine-tuning of the demo's model on phantoms; docs/reward.md says what it has shown so far."""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  """Returns the config; `mcsam demo` trains the model it starts from."""
  config = phantom.get_config()
  config.train.update({"objective": "reward", "init_from": "runs/demo", "batch_size": 16, "num_steps": 240,
                       "log_every": 20, "eval_every": 60})
  config.optimizer.update({"learning_rate": 4e-4, "warmup_steps": 30})
  config.reward.update({"num_samples": 5, "cider": 1.0, "findings": 1.0, "labeler": "phantom",
                        "cross_entropy_weight": 0.2})
  return config
