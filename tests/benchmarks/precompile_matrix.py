"""Compiles the training step of a config for many TPU topologies in turn and prints one line per topology.

    python tests/benchmarks/precompile_matrix.py --config mimic_cxr --out matrix.jsonl

Each program takes minutes. Results that are already in the file are printed and not compiled again, so the script can
be interrupted. Further arguments (--config.field=value) are passed to `mcsam precompile`; use one file per set of them.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

# (topology, slices, studies per chip); the last three have a global batch of 2,048 on 16, 64 and 256 chips.
MATRIX = (
    ("v5e:4x4", 1, 64), ("v5e:8x8", 1, 64), ("v5e:16x16", 1, 64), ("v4:8x8x16", 1, 64), ("v5e:16x16", 4, 64),
    ("v5p:4x4x4", 1, 64), ("v6e:16x16", 1, 64), ("v4:2x2x1", 1, 64), ("v5e:2x4", 1, 64),
    ("v5e:4x4", 1, 128), ("v5e:8x8", 1, 32), ("v5e:16x16", 1, 8))
HEAD = ("topology            chips  studies/chip    HBM     TFLOP  HBM GB   ICI MB   DCN MB  "
        "compute ms  HBM ms  ICI ms  DCN ms  bottleneck  utilization at most")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="mimic_cxr")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="file of results, one line of JSON per program")
  parser.add_argument("--only", nargs="*", help="compile only these topologies")
  args, rest = parser.parse_known_args()
  known = {}
  if args.out.exists():
    for line in args.out.read_text().splitlines():
      row = json.loads(line)
      known[row["topology"], row["slices"], row["studies_per_chip"]] = row
  print(HEAD)
  for topology, slices, studies in MATRIX:
    if args.only and topology not in args.only:
      continue
    row = known.get((topology, slices, studies))
    if row is None:
      row = run_precompile(args.config, topology, slices, studies, rest)
      with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(format_row(row), flush=True)


def run_precompile(config: str, topology: str, slices: int, studies: int, rest: list[str]) -> dict:
  """Returns the figures of one program, also if it doesn't fit; exits on any other error."""
  done = subprocess.run(
      [sys.executable, "-m", "mcsam_jax", "precompile", "--config", config, "--topology", topology,
       "--slices", str(slices), "--studies-per-chip", str(studies), "--json", *rest],
      stdout=subprocess.PIPE, text=True, check=False, env=os.environ)      # stderr goes to the terminal
  if done.returncode not in (0, 3):
    sys.exit(f"{topology}: mcsam precompile exited with status {done.returncode}")
  return json.loads(done.stdout) | {"studies_per_chip": studies}


def format_row(row: dict) -> str:
  name = row["topology"] + (f" x {row['slices']}" if row["slices"] > 1 else "")
  if not row["fits"]:
    missing = f"{(row['needed'] - row['available']) / 2**30:.2f} GiB too few" if row["needed"] else "no figure"
    return f"{name:18} doesn't fit at {row['studies_per_chip']} studies per chip: {missing}"
  step, bound = row["per_step"], row["roofline"]
  seconds = [bound[f"{term}_seconds"] for term in ("compute", "hbm", "ici", "dcn")]
  times = " ".join("      ?" if value is None else f"{1000 * value:7.2f}" for value in seconds)
  ici, dcn = (row["interconnect"][network]["bytes"] / 1e6 for network in ("ici", "dcn"))
  hbm_share = row["hbm"]["total"] / row["hbm"]["available"]
  return (f"{name:18} {row['chips']:>6} {row['studies_per_chip']:>13} {hbm_share:>6.0%} {step['flops'] / 1e12:>9.3f} "
          f"{step['hbm_bytes'] / 1e9:>7.2f} {ici:>8.1f} {dcn:>8.1f}     {times}   {bound['bottleneck']:10} "
          f"{bound['utilization']:>9.1%}")


if __name__ == "__main__":
  main()
