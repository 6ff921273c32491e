"""Measures how long the commands take from their start to their first result, and where the seconds go.

  python tests/benchmarks/first_result.py [--workdir runs/demo] [--verbs report evaluate train] [--repeats 1]

Each command runs in processes of its own: first with an empty compilation cache, then `--repeats` times with the cache
that the first one filled. The workdir is that of `mcsam demo`, with its phantoms; `train` takes one step in a temporary
workdir. Prints JSON: seconds from the start of the process to the first result (the report's text, the generated
reports, the first step) and to its end, its processor time, and phases inside the process. Those of JAX (trace, lower,
compile or read from the cache) may overlap with the others: restoring a checkpoint, for example, may trace functions.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time

# The line that shows that the first result is there.
FIRST_RESULT = {"report": r"\[1\] ", "evaluate": "explaining the reports", "train": "step 1/"}
# Modules whose import is timed: what the verb's module needs includes JAX, Flax and, except for reports, TensorFlow.
MODULES = {"report": "mcsam_jax.evaluation.report", "evaluate": "mcsam_jax.evaluation.evaluate",
           "train": "mcsam_jax.training.train"}
PHASES = {"jaxpr_trace_duration": "trace", "jaxpr_to_mlir_module_duration": "lower",
          "backend_compile_duration": "compile or read the cache"}
COUNTS = {"compile_requests_use_cache": "programs", "cache_hits": "programs from JAX's cache",
          "cache_misses": "programs compiled and stored"}


def run_in_this_process(out: pathlib.Path, verb: str, arguments: Sequence[str]) -> int:
  """Runs a verb, writes the seconds of its phases to `out`, and returns the exit status."""
  import importlib
  start = time.monotonic()
  importlib.import_module(MODULES[verb])
  phases = {"import": time.monotonic() - start}
  import jax.monitoring

  from mcsam_jax.checkpoints.checkpoint import Checkpoints
  from mcsam_jax.cli import main

  def add(name: str, value: float) -> None:
    phases[name] = phases.get(name, 0) + value

  def add_duration(event: str, duration_secs: float, **unused) -> None:
    if name := PHASES.get(event.rsplit("/", 1)[-1]):
      add(name, duration_secs)

  def count(event: str, **unused) -> None:
    if name := COUNTS.get(event.rsplit("/", 1)[-1]):
      add(name, 1)

  def timed_restore(self, *args, **kwargs):
    start = time.monotonic()
    try:
      return restore(self, *args, **kwargs)
    finally:
      add("restore", time.monotonic() - start)

  restore, Checkpoints.restore_variables = Checkpoints.restore_variables, timed_restore
  jax.monitoring.register_event_duration_secs_listener(add_duration)
  jax.monitoring.register_event_listener(count)
  status = main([verb, *arguments])
  out.write_text(json.dumps(phases))
  return status


def measure(verb: str, arguments: Sequence[str], cache: pathlib.Path) -> dict:
  """Returns the seconds of a command in a process of its own, whose compiled programs are in the folder `cache`."""
  out = cache.parent / "phases.json"
  command = [sys.executable, __file__, "--child", str(out), verb, *arguments]
  environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  used = _read_cpu_seconds()
  start, first, lines = time.monotonic(), None, []
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        text=True) as process:
    for line in process.stdout or ():
      lines.append(line)
      if first is None and re.match(FIRST_RESULT[verb], line):
        first = time.monotonic() - start
  if process.returncode or first is None:
    sys.exit(f"{' '.join(command)} failed:\n{''.join(lines[-20:])}")
  return {"first result": round(first, 2), "end": round(time.monotonic() - start, 2),
          "cpu": round(_read_cpu_seconds() - used, 2),
          **{name: round(value, 2) for name, value in json.loads(out.read_text()).items()}}


def _read_cpu_seconds() -> float:
  """Returns the processor time of all children that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def find_instruction_set() -> str:
  """Returns the widest vector instructions of this processor, which change what compilation and computing take."""
  try:
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
  except OSError:
    return platform.machine()
  return next((name for name in ("amx_tile", "avx512f", "avx2", "avx") if name in flags), platform.machine())


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workdir", default="runs/demo")
  parser.add_argument("--verbs", nargs="+", default=list(MODULES), choices=list(MODULES))
  parser.add_argument("--repeats", type=int, default=1, help="number of calls with a filled cache (default: 1)")
  args = parser.parse_args()
  study = sorted(path for path in pathlib.Path(args.workdir, "phantoms").iterdir() if path.is_dir())[0]
  config = json.loads(pathlib.Path(args.workdir, "config.json").read_text())
  figures: dict = {"instruction_set": find_instruction_set(), "cores": os.cpu_count()}
  for verb in args.verbs:
    with tempfile.TemporaryDirectory() as folder:
      calls = []
      for call in range(1 + args.repeats):
        arguments = {"report": ["--workdir", args.workdir, str(study)], "evaluate": ["--workdir", args.workdir],
                     "train": ["--workdir", f"{folder}/run{call}", "--config", config["data"]["name"],
                               f"--config.data.data_dir={config['data']['data_dir']}",
                               f"--config.encoder.weights={config['encoder']['weights']}",
                               "--config.memory_init.kind=random", "--config.optimizer.warmup_steps=0",
                               "--config.train.num_steps=1", "--config.train.log_every=1",
                               "--config.train.eval_studies=1"]}[verb]
        calls.append(measure(verb, arguments, pathlib.Path(folder, "cache")))
      figures[verb] = {"empty cache": calls[0], "filled cache": calls[1] if args.repeats == 1 else calls[1:]}
  print(json.dumps(figures, indent=2))


if __name__ == "__main__":
  if sys.argv[1:2] == ["--child"]:
    sys.exit(run_in_this_process(pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
  main()
