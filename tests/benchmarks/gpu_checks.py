"""Checks and measures MCSAM on one GPU: correctness, a training step, beam search; `gpu.sh` runs it.

Each part runs in its own process, so that neither an error, a crash nor the time limit costs the results of the others.
A part that doesn't apply here, or for which no time is left, is reported with the reason. Nothing here imports
TensorFlow or needs the network. The last line of the output is not progress but the JSON object of all results.
"""

import argparse
from collections.abc import Callable
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

SECONDS = 300                    # limit for all parts together
RESERVE = 5                      # of these, to end a part and print the results
VOCAB_SIZE, EOS = 4347, 2        # R2Gen's vocabulary on MIMIC-CXR
TINY = {"encoder.name": "resnet_tiny", "data.image_size": 32, "model.width": 16, "model.feedforward_width": 16,
        "model.num_heads": 2, "model.encoder_layers": 0, "model.decoder_layers": 1, "memory.num_heads": 2,
        "memory.num_slots": 12, "memory.slot_width": 8, "memory.top_k": 3, "tokenizer.max_length": 5,
        "data.augment": False}


class LeftOut(Exception):
  """A part doesn't apply on this machine; the message says why."""


def load(tiny: bool, **fields):
  """Returns the config `mimic_cxr`, made small if `tiny`, with fields spelled `section__field`."""
  from mcsam_jax.config import load_config
  values = (TINY if tiny else {}) | {"encoder.weights": "", "data.restricted": False}
  values |= {name.replace("__", "."): value for name, value in fields.items()}
  return load_config("mimic_cxr", [f"--config.{name}={value}" for name, value in values.items()])


# Correctness. TF32 would round the factors of products to 10 bits, so the comparisons ask for the full precision.

def check_parity(tiny: bool) -> dict:
  """Compares log-probabilities and beam search with the outputs of R2GenCMN's PyTorch code."""
  import jax
  import numpy as np

  from mcsam_jax.decoding.beam_search import beam_search
  from tests.testing.r2gencmn import R2GenCMN, TOLERANCE
  results: dict[str, Any] = {}
  with jax.default_matmul_precision("highest"):
    for size in ("small",) if tiny else ("small", "full"):
      network = R2GenCMN(size)
      found, expected = network.search(beam_search, 3, beam_size=3, finished_beams="in_place"), network.outputs
      results[size] = {
          "log_prob_error": network.log_prob_error(), "tolerance": TOLERANCE[size],
          "equal_reports": int((found.ids[:, 0] == expected["beam3"]).all(-1).sum()), "reports": network.studies,
          "beam_log_prob_error": float(np.abs(found.log_probs[:, 0] - expected["beam3_logprob"]).max())}
  results["passed"] = all(
      row["log_prob_error"] <= row["tolerance"] and row["equal_reports"] == row["reports"]
      and row["beam_log_prob_error"] <= 1e-3 for row in results.values())
  return results


def check_top_k(tiny: bool) -> dict:
  """Compares the selected memory slots with a stable sort in NumPy, with and without ties, on this device and a CPU."""
  import jax
  import numpy as np

  from mcsam_jax.models.kernels.top_k import top_k_mask
  queries, slots, k = (8, 64, 5) if tiny else (4096, 2048, 32)
  select = jax.jit(lambda scores: top_k_mask(scores, k) > -np.inf)
  results: dict[str, Any] = {}
  for name, decimals in (("random", 7), ("tied", 1)):
    scores = np.random.default_rng(0).normal(size=(queries, slots)).astype(np.float32).round(decimals)
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, np.argsort(-scores, axis=-1, kind="stable")[:, :k], True, axis=-1)
    results[name] = {"device": bool((np.asarray(select(scores)) == expected).all())}
    if cpu := find_cpu():
      results[name]["cpu"] = bool((np.asarray(select(jax.device_put(scores, cpu))) == expected).all())
  results["passed"] = all(all(row.values()) for row in results.values())
  return results


def check_beam_search(tiny: bool) -> dict:
  """Compares reports and log-probabilities of beam search with those of the same network on the CPU, in float32."""
  import jax
  import numpy as np

  from mcsam_jax.benchmark.decode import make_encoded_images, make_network, make_search
  cpu = find_cpu()
  if cpu is None:
    raise LeftOut("JAX has no CPU device here: set JAX_PLATFORMS=cuda,cpu or leave it unset")
  config = load(tiny, train__compute_dtype="float32", decode__beam_size=3)
  with jax.default_matmul_precision("highest"):
    model, init = make_network(config, VOCAB_SIZE if not tiny else 20)
    with jax.default_device(cpu):
      variables, images = jax.jit(init)(), make_encoded_images(config, 2)
    constants = lambda variables: model.apply(variables, method="make_decode_constants")
    search = jax.jit(lambda variables, images: make_search(model, config)(variables, constants(variables), images))
    reference, found = (jax.device_get(search(*jax.device_put((variables, images), device)))
                        for device in (cpu, jax.devices()[0]))
  error = float(np.abs(found.log_probs - reference.log_probs).max())
  equal = (found.ids == reference.ids).all(-1)
  return {"equal_beams": int(equal.sum()), "beams": equal.size, "log_prob_error": error,
          "passed": bool(equal[:, 0].all() and error <= 1e-3)}


def find_cpu():
  """Returns JAX's CPU device; None if `JAX_PLATFORMS` leaves it out."""
  import jax
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return None


# Speed.

def measure_train(tiny: bool, use_memory: bool = True) -> dict:
  """Measures a training step of `mimic_cxr` in bfloat16 with 64 studies, compilation apart."""
  import jax
  import numpy as np

  from input_pipeline.batch import empty_batch
  from mcsam_jax.distributed.mesh import batch_sharding, make_mesh, replicated
  from mcsam_jax.hardware import detect_chip
  from mcsam_jax.models.initialize import init_variables, make_model
  from mcsam_jax.models.visual_encoders.registry import find_encoder
  from mcsam_jax.training.flops import train_flops
  from mcsam_jax.training.train_state import create_train_state
  from mcsam_jax.training.train_step import make_train_step
  from tests.testing.random_variables import draw_variables
  studies, vocab_size = (2, 20) if tiny else (64, VOCAB_SIZE)
  config = load(tiny, train__batch_size=studies, model__use_memory=use_memory, model__use_alignment=use_memory)
  device = jax.devices()[0]
  mesh = make_mesh(config, [device])
  model = make_model(config, vocab_size, config.data.image_size // find_encoder(config.encoder.name).stride)
  rng = np.random.default_rng(0)
  batch = empty_batch(config, studies)
  batch["images"] = rng.integers(0, 256, batch["images"].shape, np.uint8)
  batch["tokens"] = rng.integers(4, vocab_size, batch["tokens"].shape).astype(np.int32)
  batch["tokens"][:, 0], batch["tokens"][:, -1] = 1, EOS
  batch["record"] = np.arange(studies, dtype=np.int32)
  variables = draw_variables(lambda: init_variables(model, config, empty_batch(config, 1)))
  with jax.set_mesh(mesh):
    batch = jax.device_put(batch, batch_sharding(mesh))
    state = jax.device_put(create_train_state(config, variables["params"], variables["batch_stats"]), replicated(mesh))
    start = time.perf_counter()
    step = jax.jit(make_train_step(model, config, EOS), donate_argnums=0,
                   out_shardings=(replicated(mesh), replicated(mesh))).lower(state, batch).compile()
    compile_seconds, losses, seconds = time.perf_counter() - start, [], []
    for _ in range(4 if tiny else 23):
      start = time.perf_counter()
      state, metrics = jax.block_until_ready(step(state, batch))
      seconds.append(time.perf_counter() - start)
      losses.append(float(metrics["loss"]))
  median = statistics.median(seconds[3:])
  flops, chip = train_flops(config, vocab_size), detect_chip(device.device_kind)
  peak_memory, program = (device.memory_stats() or {}).get("peak_bytes_in_use"), step.memory_analysis()
  return {"studies": studies, "compute_dtype": config.train.compute_dtype, "use_memory": use_memory,
          "compile_seconds": round(compile_seconds, 1), "seconds_per_step": median,
          "examples_per_second": round(studies / median, 1), "model_tflop_per_step": flops and flops / 1e12,
          "model_tflops_per_second": flops and flops / median / 1e12,
          "utilization": flops and chip and flops / median / chip.device_flops,
          "peak_published_for": chip and chip.name, "peak_memory_bytes": peak_memory,
          "program_temporary_bytes": program and program.temp_size_in_bytes, "first_loss": losses[0],
          "last_loss": losses[-1], "passed": bool(np.isfinite(losses).all())}


def measure_beam_search(tiny: bool, use_memory: bool = True) -> dict:
  """Measures beam search from encoded patches to token ids in bfloat16, as `mcsam benchmark decode` does."""
  import jax

  from mcsam_jax.benchmark.decode import make_run, measure_seconds
  config = load(tiny, decode__beam_size=3, memory__query="word_position", model__use_memory=use_memory)
  results = {"compute_dtype": config.train.compute_dtype, "use_memory": use_memory, "beams": 3,
             "tokens": config.tokenizer.max_length, "runs": []}
  for studies in (2,) if tiny else (8, 64):
    run, compile_seconds = make_run(config, 20 if tiny else VOCAB_SIZE, studies)
    median = statistics.median(measure_seconds(run) for _ in range(2 if tiny else 7))
    results["runs"].append({"studies": studies, "seconds": median, "compile_seconds": round(compile_seconds, 1),
                            "tokens_per_second": round(studies * config.tokenizer.max_length / median, 1)})
  return results | {"peak_memory_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}


def measure_generate(tiny: bool) -> dict:
  """Measures Hugging Face's `generate` with a BART decoder of the same size, in bfloat16, on the same GPU."""
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      raise LeftOut(f"{package} isn't installed")
  import torch

  from tests.benchmarks.decode_peers import make_transformers_decoder
  if not tiny and not torch.cuda.is_available():
    raise LeftOut(f"torch {torch.__version__} sees no CUDA device")
  device, dtype, tokens = ("cuda", "bfloat16", 100) if torch.cuda.is_available() else ("cpu", "float32", 100)
  results = {"torch": torch.__version__, "transformers": importlib.metadata.version("transformers"), "device": device,
             "compute_dtype": dtype, "beams": 3, "tokens": tokens, "runs": []}
  for studies in (1,) if tiny else (8, 64):
    run, seconds = make_transformers_decoder(studies, 2, device, dtype, 20 if tiny else VOCAB_SIZE), []
    for _ in range(1 if tiny else 7):
      start = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    results["runs"].append({"studies": studies, "seconds": median,
                            "tokens_per_second": round(studies * tokens / median, 1)})
  return results


def describe_machine(tiny: bool) -> dict:
  """Returns versions and device."""
  import jax
  device = jax.devices()[0]
  packages = [name for name in importlib.metadata.packages_distributions().get("jax_plugins", []) if "cuda" in name]
  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", *packages)}
  stats = device.memory_stats() or {}
  return {"python": platform.python_version(), "versions": versions, "platform": device.platform,
          "platform_version": " ".join(device.client.platform_version.split()), "device_kind": device.device_kind,
          "num_devices": jax.device_count(), "memory_limit_bytes": stats.get("bytes_limit"), "tiny": tiny}


PARTS: dict[str, Callable[[bool], dict]] = {
    "machine": describe_machine, "top_k": check_top_k, "parity": check_parity, "beam_search": check_beam_search,
    "train": measure_train, "decode": measure_beam_search, "generate": measure_generate,
    "train_without_memory": lambda tiny: measure_train(tiny, use_memory=False),
    "decode_without_memory": lambda tiny: measure_beam_search(tiny, use_memory=False)}


def run_part(name: str, tiny: bool) -> dict:
  """Returns the result of a part, or why there is none."""
  try:
    return PARTS[name](tiny)
  except LeftOut as reason:
    return {"left_out": str(reason)}
  except Exception as error:                       # one part must not lose the others' results
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "passed": False}


def run_part_apart(name: str, tiny: bool, seconds: float) -> dict:
  """Runs a part in a process of its own, which ends after `seconds`; returns its result, or why there is none."""
  if seconds <= 0:
    return {"left_out": "no time was left"}
  command = [sys.executable, os.path.abspath(__file__), "--part", name, *(["--tiny"] if tiny else [])]
  try:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False)
  except subprocess.TimeoutExpired:
    return {"left_out": f"unfinished after the {seconds:.0f} s that were left"}
  try:
    return json.loads(done.stdout.splitlines()[-1])
  except (IndexError, ValueError):
    return {"error": f"the process ended with status {done.returncode} and without a result", "passed": False}


def add_memory_shares(results: dict) -> None:
  """Adds the share of the time that the memory bank takes: 1 - time without it / time with it."""
  for name, get_times in (("train", lambda part: [part["seconds_per_step"]]),
                          ("decode", lambda part: [run["seconds"] for run in part["runs"]])):
    try:
      with_memory, without = (get_times(results[part]) for part in (name, f"{name}_without_memory"))
    except KeyError:
      continue
    results[name]["memory_share"] = [1 - b / a for a, b in zip(with_memory, without)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tiny", action="store_true", help="small networks, to try the script on a CPU")
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these parts")
  parser.add_argument("--seconds", type=float, default=SECONDS, help=f"limit for all parts (default: {SECONDS})")
  parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)      # in the process of one part
  args = parser.parse_args()
  if args.part:
    print(json.dumps(run_part(args.part, args.tiny)))
    return
  start, results = time.monotonic(), {}
  for name in args.parts:
    part_start = time.monotonic()
    results[name] = run_part_apart(name, args.tiny, args.seconds - RESERVE - (part_start - start))
    results[name]["wall_seconds"] = round(time.monotonic() - part_start, 1)
    outcome = next((f"{key}: {results[name][key]}" for key in ("left_out", "error") if key in results[name]), "done")
    print(f"{name}: {outcome} ({results[name]['wall_seconds']} s)", file=sys.stderr, flush=True)
  add_memory_shares(results)
  failed = [name for name, result in results.items() if not result.get("passed", True)]
  print(json.dumps(results | {"failed": failed}, indent=1))
  sys.exit(1 if failed else 0)


if __name__ == "__main__":
  main()
