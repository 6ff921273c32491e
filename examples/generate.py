"""Writes the best reports of one study: python examples/generate.py runs/demo frontal.png lateral.png

The first argument is a workdir of `mcsam train` or a folder of `mcsam export`; the files are the views of the study.
"""

import argparse

import mcsam_jax


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("model", help="workdir, or folder of an exported model")
  parser.add_argument("images", nargs="+", metavar="IMAGE", help="the views of one study")
  parser.add_argument("--nbest", type=int, default=3, metavar="N", help="number of reports (default: 3)")
  args = parser.parse_args()

  model = mcsam_jax.load(args.model)
  beams = max(args.nbest, model.config.decode.beam_size)
  report, = model.generate([args.images], search="beam", beam_size=beams, num_return=args.nbest)
  for warning in report.warnings:
    print(f"warning: {warning}")
  for rank, each in enumerate(report.nbest, 1):
    print(f"{rank}. {each}   (log-probability {each.log_prob:.2f})")
  doubtful = min(zip(report.token_log_probs, report.tokens))
  print(f"least certain token of the best report: {doubtful[1]!r}, log-probability {doubtful[0]:.2f}")


if __name__ == "__main__":
  main()
