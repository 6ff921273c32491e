"""How long beam search takes on this machine, and where the time goes.

Times the jitted search alone, from encoded patches to finished ids, on random weights; every report gets all its
tokens, as eos is forbidden until the last. What a step has to compute and to read is counted from the shapes, and set
beside what this machine reaches in plain products of matrices.
"""

from collections.abc import Callable
import math
import statistics
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search, BeamResult
from mcsam_jax.decoding.loop import cache_schedule, CacheResizer
from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.mcsam import DecodeConstants, EncodedImages, MCSAM
from mcsam_jax.models.visual_encoders.registry import ENCODERS

BOS, EOS, PAD = 1, 2, 0


def benchmark_decode(config: ConfigDict, num_studies: list[int], vocab_size: int, repeats: int) -> dict:
  """Returns figures of beam search for each number of studies (B), and of the machine.

  Args:
    config: `model`, `memory`, `decode.beam_size` (K) and `tokenizer.max_length` (T) are read.
    repeats: timed calls, of which the median is given.
  """
  figures = {"device": jax.devices()[0].device_kind, "num_devices": jax.device_count(),
             "beam_size": config.decode.beam_size, "tokens": config.tokenizer.max_length, "vocabulary": vocab_size,
             "memory_query": config.memory.query if config.model.use_memory else "none",
             "compute_dtype": config.train.compute_dtype, "runs": []}
  figures["plain_product_gflops"] = {
      f"{rows}x{config.model.width} by {config.model.width}x{config.model.width}, {count} kernels in turn":
      round(plain_product(rows, config.model.width, count) / 1e9, 1)
      for rows, count in [(config.decode.beam_size * num_studies[0], 24), (2048, 1)]}
  for count in num_studies:
    run, compile_seconds = make_run(config, vocab_size, count)
    seconds = [timed(run) for _ in range(repeats)]
    median = statistics.median(seconds)
    tokens = count * config.tokenizer.max_length
    work = work_of_a_step(config, vocab_size, count)
    figures["runs"].append({
        "studies": count, "seconds": round(median, 4), "all_seconds": [round(second, 4) for second in seconds],
        "tokens_per_second": round(tokens / median, 1), "compile_seconds": round(compile_seconds, 1),
        "gflops": round(sum(part["flops"] for part in work.values()) * config.tokenizer.max_length / median / 1e9, 1),
        "a_step": work})
  return figures


def make_run(config: ConfigDict, vocab_size: int, num_studies: int) -> tuple[Callable[[], BeamResult], float]:
  """Returns a function that writes the reports of B studies and waits for them, and the seconds to compile it."""
  model, init = make_network(config, vocab_size)
  variables = jax.jit(init)()
  prepared = jax.jit(lambda variables: model.apply(variables, method="make_decode_constants"))(variables)
  studies = jax.block_until_ready(encoded_studies(config, num_studies))
  start = time.perf_counter()
  search = jax.jit(make_search(model, config)).lower(variables, prepared, studies).compile()
  seconds = time.perf_counter() - start
  run = lambda: jax.block_until_ready(search(variables, prepared, studies))
  run()
  return run, seconds


def make_search(model: MCSAM, config: ConfigDict) -> Callable[[dict, DecodeConstants, EncodedImages], BeamResult]:
  """Returns the beam search of `config.decode` over encoded studies, a function to jit; no report ends early."""
  length = config.tokenizer.max_length

  def search(variables: dict, prepared: DecodeConstants, encoded: EncodedImages) -> BeamResult:
    context = model.apply(variables, encoded, method="prefill")
    return beam_search(
        lambda tokens, cache: model.apply(variables, tokens, cache, context, prepared, method="decode_step"),
        init_cache(context.study_kv, config.decode.beam_size),
        cache_resizer=CacheResizer(lambda cache, num_slots: grow_cache(cache, context.study_kv, num_slots), cache_is_full),
        batch_size=encoded.patches.shape[0], beam_size=config.decode.beam_size, max_length=length, min_length=length,
        length_penalty=config.decode.length_penalty, no_repeat_ngram_size=config.decode.no_repeat_ngram_size,
        finished_beams=config.decode.finished_beams, bos_id=BOS, eos_id=EOS, pad_id=PAD)
  return search


def make_network(config: ConfigDict, vocab_size: int) -> tuple[MCSAM, Callable[[], dict]]:
  """Returns the network without its image encoder, and a function to jit that draws its variables."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.encoder.frozen = True
  info = ENCODERS[config.encoder.name]
  grid = config.data.image_size // info.stride
  model = make_model(config, vocab_size, grid)
  features = jnp.zeros((1, config.data.num_views, grid * grid, info.channels))
  views = jnp.ones((1, config.data.num_views), bool), jnp.zeros((1, config.data.num_views), jnp.int32)
  tokens = jnp.zeros((1, config.tokenizer.max_length + 1), jnp.int32)
  mask = jnp.ones((1, config.tokenizer.max_length), bool)
  return model, lambda: model.init(jax.random.key(config.seed), features, *views, tokens, mask, train=False)


def patches_of(config: ConfigDict) -> int:
  """Returns N, the patches of all views of a study."""
  return config.data.num_views * (config.data.image_size // ENCODERS[config.encoder.name].stride) ** 2


def encoded_studies(config: ConfigDict, num_studies: int) -> EncodedImages:
  """Returns random patches [B, N, D] that are all there, and codes [B, D]."""
  num_patches = patches_of(config)
  width, dtype = config.model.width, jnp.dtype(config.train.compute_dtype)
  patches = jax.random.normal(jax.random.key(0), (num_studies, num_patches, width), dtype)
  code = jax.random.normal(jax.random.key(1), (num_studies, width), dtype)
  return EncodedImages(patches, jnp.ones((num_studies, num_patches), bool), code if config.model.use_alignment else None)


def work_of_a_step(config: ConfigDict, vocab_size: int, num_studies: int) -> dict[str, dict[str, int]]:
  """Returns floating-point operations and bytes read for one token of all beams, by part of the network.

  Counted are products of matrices (two operations a multiplication). Weights and memory are read once a step, and a
  study's cache once for all its beams, as large as it is on average for a single report: beams mostly share all but
  their last words.
  """
  model, memory, length = config.model, config.memory, config.tokenizer.max_length
  rows = num_studies * config.decode.beam_size
  width, size = model.width, jnp.dtype(config.train.compute_dtype).itemsize
  num_patches = patches_of(config)
  nodes = statistics.mean(cache_schedule(length, length)) + (model.num_memory_tokens if model.use_memory_tokens else 0)
  dense = model.decoder_layers * (6 * width * width + 2 * width * model.feedforward_width)
  parts = {
      "dense layers": (2 * rows * dense, dense),
      "attention to words": (4 * rows * nodes * width * model.decoder_layers,
                             2 * num_studies * nodes * width * model.decoder_layers),
      "attention to patches": (4 * rows * num_patches * width * model.decoder_layers,
                               2 * num_studies * num_patches * width * model.decoder_layers),
      "logits": (2 * rows * width * vocab_size, width * vocab_size)}
  if model.use_memory and memory.query == "word_position":
    parts["memory"] = (2 * rows * (2 * width * width + 2 * memory.num_slots * width),
                       2 * width * width + 2 * memory.num_slots * width)
  return {name: {"flops": round(flops), "bytes": round(count * size)} for name, (flops, count) in parts.items()}


def plain_product(rows: int, width: int, num_kernels: int, turns: int = 2000) -> float:
  """Returns the operations a second of products [rows, width] x [width, width], with so many kernels in turn."""
  kernels = [jax.random.normal(jax.random.key(number), (width, width)) / math.sqrt(width)
             for number in range(num_kernels)]
  turns = max(1, turns // (num_kernels * max(1, rows // 24)))

  @jax.jit
  def run(x, kernels):
    def turn(_, x):
      for kernel in kernels:
        x = jnp.clip(x @ kernel, -3, 3)
      return x
    return jax.lax.fori_loop(0, turns, turn, x)

  x = jnp.ones((rows, width))
  call = lambda: jax.block_until_ready(run(x, kernels))
  call()
  seconds = np.median([timed(call) for _ in range(5)])
  return 2 * rows * width * width * num_kernels * turns / seconds


def timed(run: Callable) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start
