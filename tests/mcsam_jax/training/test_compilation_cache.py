"""The persistent compilation cache, which may be in a bucket, holds no reports, token ids or study ids."""

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
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS

TINY = make_arguments(NETWORK, PHANTOMS, {
    "encoder.train_batch_norm": True, "memory_init.kind": "topics", "memory_init.num_topics": 4, "memory_init.steps": 3,
    "tokenizer.max_length": 60, "optimizer.warmup_steps": 2, "train.num_steps": 4, "train.eval_every": 4,
    "train.log_every": 4, "decode.search": "mbr", "decode.num_samples": 2, "decode.retrieval_weight": 0.5,
    "eval.num_permutations": 2})


def read_cache(folder: pathlib.Path) -> bytes:
  """Returns all compiled programs of a cache, decompressed and joined."""
  entries = sorted(folder.glob("*-cache"))
  assert entries
  return b"\n".join(zstandard.ZstdDecompressor().decompressobj().decompress(entry.read_bytes()) for entry in entries)


def encode_varints(ids: np.ndarray) -> bytes:
  """Returns the bytes of small integers in a program, which are protocol-buffer varints: seven bits per byte."""
  assert ids.min() >= 0 and ids.max() < 128
  return ids.astype(np.uint8).tobytes()


@pytest.mark.slow
def test_the_cache_of_training_and_decoding_holds_no_data(tmp_path):
  before = (jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
  folder = tmp_path / "xla"

  def set_cache(path, min_compile_seconds):
    from jax.experimental.compilation_cache import compilation_cache
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_compile_seconds)

  set_cache(folder, 0.0)
  try:
    jax.clear_caches()
    overrides = [*TINY, f"--config.data.data_dir={tmp_path / 'data'}"]
    config = load_config("phantom", overrides)
    prepare(config, log=lambda line: None)
    assert cli.main(["train", "--config", "phantom", "--workdir", str(tmp_path / "run"), *overrides]) == 0
    assert cli.main(["evaluate", "--workdir", str(tmp_path / "run")]) == 0
    programs = read_cache(folder)

    tokenizer = load_or_build_tokenizer(config)
    secrets = []
    for name in ("train", "val", "test"):
      split = open_split(config, name)
      for index, report in enumerate(split.reports):
        ids = np.asarray(tokenizer.encode_for_training(report, config.tokenizer.max_length))
        secrets += [report.encode(), str(split[index]["id"]).encode(), encode_varints(ids[:8]),
                 *(ids[:6].astype(kind).tobytes() for kind in (np.int32, np.int64))]
    secrets = [secret for secret in secrets if len(secret) > 5]
    assert len(secrets) > 100 and not [secret for secret in secrets if secret in programs]

    # Control: token ids that a function closes over are part of its program, and are found in the cache.
    constant = jnp.asarray(np.tile(ids, 20), jnp.int32)
    jax.jit(lambda x: constant[x])(jnp.zeros(3, jnp.int32)).block_until_ready()
    assert encode_varints(ids[:8]) in secrets and encode_varints(ids[:8]) in read_cache(folder)
  finally:
    set_cache(*before)
