"""Measures the speed of beam search on this machine.

Times the jitted search, from encoded patches to token ids, with random weights. Every report has the maximum length,
because EOS is forbidden before the last token. The FLOPs and bytes of a step are computed from the shapes and reported
beside the speed that this machine reaches in plain matrix products.
"""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.benchmark.machine import describe_machine, measure_matmul, measure_seconds
from mcsam_jax.decoding.beam_search import beam_search, BeamResult
from mcsam_jax.decoding.loop import Cache, cache_schedule, CacheResizer
from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.mcsam import DecodeConstants, DecodeContext, EncodedImages, MCSAM
from mcsam_jax.models.visual_encoders.registry import find_encoder

BOS, EOS, PAD = 1, 2, 0


def benchmark_decode(config: ConfigDict, num_studies: list[int], vocab_size: int, repeats: int) -> dict:
  """Measures the speed of beam search for each batch size (B studies), and of matrix products on this machine.

  Args:
    config: `model`, `memory`, `decode.beam_size` (K) and `tokenizer.max_length` (T) are used.
    repeats: number of timed calls; the median is reported.
  """
  figures = {**describe_machine(), "beam_size": config.decode.beam_size, "tokens": config.tokenizer.max_length,
             "vocabulary": vocab_size, "memory_query": config.memory.query if config.model.use_memory else "none",
             "compute_dtype": config.train.compute_dtype, "runs": []}
  figures["matmul_gflops"] = {
      f"{rows}x{config.model.width} by {config.model.width}x{config.model.width}, {count} kernels":
      round(measure_matmul(rows, config.model.width, count) / 1e9, 1)
      for rows, count in [(config.decode.beam_size * num_studies[0], 24), (2048, 1)]}
  for count in num_studies:
    run, compile_seconds = make_run(config, vocab_size, count)
    seconds = [measure_seconds(run) for _ in range(repeats)]
    median = statistics.median(seconds)
    tokens = count * config.tokenizer.max_length
    work = count_step_work(config, vocab_size, count)
    figures["runs"].append({
        "studies": count, "seconds": round(median, 4), "all_seconds": [round(second, 4) for second in seconds],
        "tokens_per_second": round(tokens / median, 1), "compile_seconds": round(compile_seconds, 1),
        "gflops": round(sum(part["flops"] for part in work.values()) * config.tokenizer.max_length / median / 1e9, 1),
        "per_step": work})
  return figures


def make_run(config: ConfigDict, vocab_size: int, num_studies: int) -> tuple[Callable[[], BeamResult], float]:
  """Returns a blocking function that generates the reports of B studies, and the seconds to compile it."""
  model, init = make_network(config, vocab_size)
  variables = jax.jit(init)()
  constants = jax.jit(lambda variables: model.apply(variables, method="make_decode_constants"))(variables)
  images = jax.block_until_ready(make_encoded_images(config, num_studies))
  start = time.perf_counter()
  search = jax.jit(make_search(model, config)).lower(variables, constants, images).compile()
  seconds = time.perf_counter() - start
  run = lambda: jax.block_until_ready(search(variables, constants, images))
  run()
  return run, seconds


def make_search(model: MCSAM, config: ConfigDict) -> Callable[[dict, DecodeConstants, EncodedImages], BeamResult]:
  """Returns a function to jit: beam search with `config.decode` over encoded images; no report ends early."""
  length = config.tokenizer.max_length

  def search(variables: dict, constants: DecodeConstants, encoded: EncodedImages) -> BeamResult:
    context = cast(DecodeContext, model.apply(variables, encoded, method="prefill"))

    def decode_step(tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
      return cast(tuple[jax.Array, Cache],
                  model.apply(variables, tokens, cache, context, constants, method="decode_step"))

    return beam_search(
        decode_step, init_cache(context.study_kv, config.decode.beam_size),
        cache_resizer=CacheResizer(lambda cache, num_slots: grow_cache(cache, context.study_kv, num_slots),
                                   cache_is_full),
        batch_size=encoded.patches.shape[0], beam_size=config.decode.beam_size, max_length=length, min_length=length,
        length_penalty=config.decode.length_penalty, no_repeat_ngram_size=config.decode.no_repeat_ngram_size,
        finished_beams=config.decode.finished_beams, bos_id=BOS, eos_id=EOS, pad_id=PAD)
  return search


def make_network(config: ConfigDict, vocab_size: int) -> tuple[MCSAM, Callable[[], Mapping[str, Any]]]:
  """Returns the network without its image encoder, and a function to jit that initializes its variables."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.encoder.update({"frozen": True, "trained_stages": 0})
  info = find_encoder(config.encoder.name)
  grid = config.data.image_size // info.stride
  model = make_model(config, vocab_size, grid)
  features = jnp.zeros((1, config.data.num_views, grid * grid, info.channels))
  views = jnp.ones((1, config.data.num_views), bool), jnp.zeros((1, config.data.num_views), jnp.int32)
  tokens = jnp.zeros((1, config.tokenizer.max_length + 1), jnp.int32)
  mask = jnp.ones((1, config.tokenizer.max_length), bool)
  return model, lambda: model.init(jax.random.key(config.seed), features, *views, tokens, mask, train=False)


def count_patches(config: ConfigDict) -> int:
  """Returns N, the number of patches of all views of a study."""
  return config.data.num_views * (config.data.image_size // find_encoder(config.encoder.name).stride) ** 2


def make_encoded_images(config: ConfigDict, num_studies: int) -> EncodedImages:
  """Returns random patches [B, N, D], all valid, and random image embeddings [B, D]."""
  num_patches = count_patches(config)
  width, dtype = config.model.width, jnp.dtype(config.train.compute_dtype)
  patches = jax.random.normal(jax.random.key(0), (num_studies, num_patches, width), dtype)
  embedding = jax.random.normal(jax.random.key(1), (num_studies, width), dtype)
  mask = jnp.ones((num_studies, num_patches), bool)
  return EncodedImages(patches, mask, embedding if config.model.use_alignment else None, None)


def count_step_work(config: ConfigDict, vocab_size: int, num_studies: int) -> dict[str, dict[str, int]]:
  """Returns the FLOPs and bytes read per decode step of all beams, by part of the network.

  FLOPs are those of matrix products, two per multiply-add. Weights and memory are read once per step. The cache of a
  study is read once for all beams, with the average size for a single report, because beams mostly share all tokens
  but the last few.
  """
  model, memory, length = config.model, config.memory, config.tokenizer.max_length
  rows = num_studies * config.decode.beam_size
  width, size = model.width, jnp.dtype(config.train.compute_dtype).itemsize
  num_patches = count_patches(config)
  num_memory_tokens = model.num_memory_tokens if model.use_memory_tokens else 0
  cache_slots = statistics.mean(cache_schedule(length, length)) + num_memory_tokens
  dense = model.decoder_layers * (6 * width * width + 2 * width * model.feedforward_width)
  parts = {
      "dense layers": (2 * rows * dense, dense),
      "attention to tokens": (4 * rows * cache_slots * width * model.decoder_layers,
                             2 * num_studies * cache_slots * width * model.decoder_layers),
      "attention to patches": (4 * rows * num_patches * width * model.decoder_layers,
                               2 * num_studies * num_patches * width * model.decoder_layers),
      "logits": (2 * rows * width * vocab_size, width * vocab_size)}
  if model.use_memory and memory.query == "word_position":
    parts["memory"] = (2 * rows * (2 * width * width + 2 * memory.num_slots * width),
                       2 * width * width + 2 * memory.num_slots * width)
  return {name: {"flops": round(flops), "bytes": round(count * size)} for name, (flops, count) in parts.items()}
