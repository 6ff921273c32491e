"""Small configs for tests: networks that compile in seconds, and phantoms that are drawn in seconds."""

from ml_collections import ConfigDict

from mcsam_jax.config import load_config

# One decoder layer of width 16 over a memory of 12 slots; the network of the paper, without findings head.
NETWORK = {
    "model.width": 16, "model.feedforward_width": 16, "model.num_heads": 2, "model.encoder_layers": 0,
    "model.decoder_layers": 1, "model.num_memory_tokens": 2, "memory.num_heads": 2, "memory.num_slots": 12,
    "memory.slot_width": 8, "memory.top_k": 3, "model.dropout": 0.1, "model.findings_head": False,
}
# Every part of the network twice or more, for tests of the network itself.
DEEPER_NETWORK = {
    "model.width": 32, "model.feedforward_width": 48, "model.num_heads": 4, "model.encoder_layers": 1,
    "model.decoder_layers": 2, "model.num_memory_tokens": 3, "memory.num_heads": 4, "memory.num_slots": 40,
    "memory.slot_width": 24, "memory.top_k": 6, "model.dropout": 0.1, "model.findings_head": False,
}
# A trained encoder of its own on 24 phantoms, with short reports.
PHANTOMS = {
    "data.phantom.num_train": 24, "data.phantom.num_val": 6, "data.phantom.num_test": 6, "data.image_size": 32,
    "encoder.name": "resnet_tiny", "encoder.weights": "", "encoder.frozen": False, "memory_init.kind": "random",
    "tokenizer.threshold": 1, "tokenizer.max_length": 12, "train.batch_size": 4, "train.eval_studies": 4,
    "train.host_threads": 1, "train.best_metric": "", "optimizer.warmup_steps": 5, "decode.batch_size": 4,
    "decode.beam_size": 2,
}


def make_arguments(*fields: dict, **changes) -> list[str]:
  """Returns `--config.field=value` arguments; later fields win.

  Args:
    fields: dictionaries such as NETWORK.
    changes: further fields, with two underscores for each dot: model__width=8.
  """
  merged = {}
  for each in (*fields, {name.replace("__", "."): value for name, value in changes.items()}):
    merged |= each
  return [f"--config.{field}={value}" for field, value in merged.items()]


def make_config(*fields: dict, name: str = "phantom", **changes) -> ConfigDict:
  """Returns the config `name` with fields changed as in `make_arguments`."""
  return load_config(name, make_arguments(*fields, **changes))
