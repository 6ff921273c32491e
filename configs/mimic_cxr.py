"""MIMIC-CXR at the published size, from PhysioNet's files: one record per study, ResNet-50 trained end to end.

data.source_dir is the folder of MIMIC-CXR-JPG, with mimic-cxr-reports.zip in it (see
input_pipeline/datasets/mimic_cxr/dataset.py). For R2Gen's protocol, with one record per image, put its annotation.json
there and set data.mimic_cxr.unit=image, data.num_views=1 and data.min_words=0. MIMIC-CXR is credentialed, so the
config sets data.restricted: no report text or id is written to logs or TensorBoard.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """Returns the config for MIMIC-CXR."""
  config = default.get_config()
  config.data.update({
      "name": "mimic_cxr",
      "source_dir": "mimic_cxr",
      "restricted": True,
      "cleaning": "mimic_cxr",
      "min_words": 3,
      "num_views": 2,
      "short_side": 256,
      "dicom_rendering": "mimic_cxr_jpg",
      "image_size": 224,
      "augment": True,
  })
  config.prepare.max_corrupt_records = 100
  config.tokenizer.update({"threshold": 10, "max_length": 100})                        # R2Gen's settings
  config.encoder.update({"name": "resnet50", "weights": "data/resnet50.npz", "frozen": False})
  config.memory.update({"num_slots": 2048, "slot_width": 512, "num_heads": 8,
                        "query": "word_position"})                                     # R2GenCMN's sizes
  config.memory_init.update({"num_topics": 128, "steps": 2000})
  config.model.update({"width": 512, "num_heads": 8, "feedforward_width": 512, "encoder_layers": 3,
                       "decoder_layers": 3})
  config.optimizer.update({"learning_rate": 4e-4, "encoder_learning_rate": 1e-4, "warmup_steps": 2000})
  config.train.update({"batch_size": 256, "num_steps": 30000, "compute_dtype": "bfloat16", "log_every": 100,
                       "eval_every": 2000, "checkpoint_every": 500, "eval_studies": 512,
                       "host_threads": 16, "max_corrupt_records": 100})
  config.decode.batch_size = 256          # 16 studies per chip on 16 chips; with few, a chip mostly waits
  return config
