"""The persistent compilation cache, which may be a bucket, holds programs: no report, no token ids, no study id."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zstandard

from input_pipeline.builder.prepare import prepare
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.splits import open_split
from mcsam_jax import cli
from mcsam_jax.config import load_config

TINY = [f"--config.{field}" for field in (
    "data.phantom.num_train=24", "data.phantom.num_val=6", "data.phantom.num_test=6", "data.image_size=32",
    "encoder.name=resnet_tiny", "encoder.weights=", "encoder.frozen=false", "encoder.train_batch_norm=true",
    "model.width=16", "model.feedforward_width=16", "model.num_heads=2", "model.encoder_layers=0",
    "model.decoder_layers=1", "model.num_memory_tokens=2", "memory.num_heads=2", "memory.num_slots=12",
    "memory.slot_width=8", "memory.top_k=3", "memory_init.num_topics=4", "memory_init.steps=3", "tokenizer.threshold=1",
    "train.batch_size=4", "optimizer.warmup_steps=2", "train.num_steps=4", "train.eval_every=4", "train.log_every=4",
    "train.eval_studies=4", "train.host_threads=1", "decode.batch_size=4", "decode.search=mbr",
    "decode.num_samples=2", "decode.retrieval_weight=0.5", "eval.labeler=phantom", "eval.num_permutations=2")]


def cached(folder: pathlib.Path) -> bytes:
  """Returns all programs of a cache, unpacked."""
  entries = sorted(folder.glob("*-cache"))
  assert entries
  return b"\n".join(zstandard.ZstdDecompressor().decompressobj().decompress(entry.read_bytes()) for entry in entries)


def packed(ids: np.ndarray) -> bytes:
  """Returns how a program holds a constant of small numbers: as protocol buffers do, seven bits a byte."""
  assert ids.min() >= 0 and ids.max() < 128
  return ids.astype(np.uint8).tobytes()


@pytest.mark.slow
def test_training_and_decoding_leave_programs_alone_in_the_cache(tmp_path):
  before = (jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
  folder = tmp_path / "xla"

  def use(path, seconds):
    from jax.experimental.compilation_cache import compilation_cache
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)

  use(folder, 0.0)
  try:
    jax.clear_caches()
    overrides = [*TINY, f"--config.data.data_dir={tmp_path / 'data'}"]
    config = load_config("phantom", overrides)
    prepare(config, log=lambda line: None)
    assert cli.main(["train", "--config", "phantom", "--workdir", str(tmp_path / "run"), *overrides]) == 0
    assert cli.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 0
    programs = cached(folder)

    tokenizer = load_or_build_tokenizer(config)
    told = []
    for name in ("train", "val", "test"):
      split = open_split(config, name)
      for index, report in enumerate(split.reports):
        ids = np.asarray(tokenizer.encode_for_training(report, config.tokenizer.max_length))
        told += [report.encode(), str(split[index]["id"]).encode(), packed(ids[:8]),
                 *(ids[:6].astype(kind).tobytes() for kind in (np.int32, np.int64))]
    told = [piece for piece in told if len(piece) > 5]
    assert len(told) > 100 and not [piece for piece in told if piece in programs]

    # The search would have found what a program does hold: token ids that a function closes over.
    secret = jnp.asarray(np.tile(ids, 20), jnp.int32)
    jax.jit(lambda x: secret[x])(jnp.zeros(3, jnp.int32)).block_until_ready()
    assert packed(ids[:8]) in told and packed(ids[:8]) in cached(folder)
  finally:
    use(*before)
