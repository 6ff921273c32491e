"""A complete workdir of a few kilobytes without checkpoints, written without records."""

import pathlib

from etils import epath
import numpy as np

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.config import save_config
from mcsam_jax.memory_init.initial_memory import InitialMemory, NUM_NEAREST, save_initial_memory
from tests.testing.tiny import make_config, NETWORK, PHANTOMS

NUM_TOPICS = 3


def make_initial_memory(config) -> InitialMemory:
  """Returns random slots of the shape that the config says."""
  rng, num_slots = np.random.default_rng(0), config.memory.num_slots
  words = lambda count: [[f"word{number}" for number in range(NUM_NEAREST)] for _ in range(count)]
  cosines = lambda count: np.full((count, NUM_NEAREST), 0.5, np.float32)
  return InitialMemory("topics", rng.normal(size=(num_slots, config.memory.slot_width)).astype(np.float32),
                       words(num_slots), cosines(num_slots), np.arange(num_slots, dtype=np.int32) % NUM_TOPICS,
                       words(NUM_TOPICS), cosines(NUM_TOPICS), np.zeros(NUM_TOPICS, np.float32))


def make_workdir(path: pathlib.Path) -> pathlib.Path:
  """Writes config.json, tokenizer/, memory_bank/ and encoder.npz to `path`, and returns it."""
  config = make_config(NETWORK, PHANTOMS, memory_init__kind="topics", memory_init__num_topics=NUM_TOPICS)
  path.mkdir(parents=True, exist_ok=True)
  tokenizer = WordTokenizer.train(["the lungs are clear .", "no effusion ."], "iu_xray", 1, False)
  tokenizer.save(epath.Path(path / "tokenizer"))
  save_initial_memory(path / "memory_bank", make_initial_memory(config))
  save_weights(path / "encoder.npz", init_encoder_variables(config), {
      "architecture": "resnet_tiny", "source": "x.pth", "sha256": "0", "pretraining_data": "none"})
  save_config(config, epath.Path(path / "config.json"))
  return path
