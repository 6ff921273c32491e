"""Reward fine-tuning of the demo's model on phantoms that it has not seen; docs/reward.md has its results."""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  """Returns the config; `mcsam demo` trains the model it starts from."""
  config = phantom.get_config()
  # Studies that the demo's model has not seen: rewards on the studies that it was trained on teach it little.
  config.data.phantom.update({"first_train": config.data.phantom.num_train, "num_train": 3200})
  config.train.update({"objective": "reward", "init_from": "runs/demo", "batch_size": 32, "num_steps": 160,
                       "log_every": 40, "eval_every": 160, "eval_studies": 200})
  config.model.findings_weight = 1.0
  config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 20, "label_smoothing": 0.0})
  # The policy gradient sums over the tokens of a report and is noisy; the likelihood loss is a mean over tokens. With a
  # small weight the noise drowns it.
  config.reward.update({"num_samples": 2, "temperature": 0.5, "cider": 1.0, "findings": 2.0, "labeler": "phantom",
                        "cross_entropy_weight": 25.0})
  return config
