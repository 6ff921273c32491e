"""R2GenCMN (Chen et al., ACL 2021) as a special case of MCSAM, at its published size, on IU X-Ray.

It has a memory with random slots but no alignment and no memory tokens, and uses R2GenCMN's LayerNorm, one id for
pad, bos and eos, and its beam search. `mcsam import-weights model model_iu_xray.pth runs/r2gencmn --config r2gencmn`
turns a published checkpoint into a workdir. One difference remains: R2GenCMN resizes a test image to 224 x 224
regardless of its aspect ratio; here the center is cropped.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """Returns the config of R2GenCMN on IU X-Ray."""
  config = default.get_config()
  config.data.update({"name": "r2gen_json", "source_dir": "iu_xray", "cleaning": "iu_xray", "short_side": 256,
                      "image_size": 224, "augment": True})
  config.tokenizer.update({"threshold": 3, "max_length": 60, "shared_special_ids": True})
  config.encoder.update({"name": "resnet101", "weights": "data/resnet101.npz", "frozen": False,
                         "train_batch_norm": True})
  config.memory.update({"num_slots": 2048, "slot_width": 512, "num_heads": 8, "top_k": 32,
                        "consolidation": "residual", "query": "word_position"})
  config.memory_init.kind = "random"
  config.model.update({"width": 512, "num_heads": 8, "feedforward_width": 512, "encoder_layers": 3,
                       "decoder_layers": 3, "use_alignment": False, "use_memory_tokens": False, "norm": "r2gencmn",
                       "patch_activation": "relu", "patch_positions": "sinusoidal", "word_positions": "sinusoidal"})
  config.optimizer.update({"learning_rate": 5e-4, "encoder_learning_rate": 1e-4, "warmup_steps": 100,
                           "weight_decay": 5e-5, "label_smoothing": 0.0})      # lr_ed and lr_ve in its script
  config.train.update({"batch_size": 16, "num_steps": 13000, "log_every": 130, "eval_every": 1300,
                       "eval_studies": 0, "best_metric": "BLEU_4"})            # 100 epochs over 2,069 studies
  config.decode.update({"beam_size": 3, "finished_beams": "in_place", "length_penalty": 0.0})
  return config
