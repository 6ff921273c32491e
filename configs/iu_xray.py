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
      "augment": False,
  })
  config.tokenizer.update({"threshold": 3, "max_length": 60})
  config.encoder.update({
      "name": "efficientnet_lite0",
      "weights": "efficientnet_lite0.npz",
      "frozen": True,
      "train_batch_norm": False,
  })
  config.eval.labeler = "none"
  return config
