"""IU X-Ray by R2Gen's annotation.json: two views a study, EfficientNet-Lite0 features computed once."""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
  config = phantom.get_config()
  config.data.update({
      "name": "r2gen_json",
      "source_dir": "iu_xray",
      "cleaning": "iu_xray",
      "image_size": 224,
      "short_side": 256,
  })
  config.tokenizer.update({"threshold": 3, "max_length": 60})             # R2Gen's
  config.memory.num_slots = 256
  config.memory_init.update({"num_topics": 64, "steps": 250})
  config.model.align_weight = 0.3
  config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100, "label_smoothing": 0.0})
  config.train.update({"batch_size": 16, "num_steps": 2080, "log_every": 130, "eval_every": 520, "eval_studies": 0})
  config.decode.search = "consensus"
  config.eval.labeler = "none"
  return config
