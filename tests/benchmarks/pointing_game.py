"""Do heat maps show the findings? The pointing game (Zhang et al., ECCV 2016) on phantoms, whose findings are known.

    mcsam evaluate --workdir W --split test
    python tests/benchmarks/pointing_game.py --workdir W --split test

For each finding that was drawn and that the generated report states, the word that names it is taken (`effusion`), and
the patch where the model looked most when it wrote that word. It is a hit if the patch, one of those of all views, lies
on the finding: if at least an eighth of its pixels are pixels that the finding changed. Beside it:

  another's   the same question to the maps of the same word in all other studies that state the finding and have the
              same views: what a map knows of where such a finding mostly is, without this study
  chance      the share of patches that are hits
  more        own minus another's, with a 95 % interval (findings resampled)
"""

import argparse
import json
import sys

import jax
import numpy as np

from input_pipeline.datasets.phantom.anatomy import locate_findings
from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from input_pipeline.datasets.phantom.reports import find_mentions
from input_pipeline.datasets.records import SPLITS
from input_pipeline.pipeline import eval_batches
from mcsam_jax.checkpoints.workdir import open_workdir
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.errors import UserError
from mcsam_jax.explain.explanations import explain_reports
from mcsam_jax.inference.feature_cache import load_split_features
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.load import load_model

SHARE = 1 / 8                   # share of a patch's pixels


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--split", default="test")
  parser.add_argument("--json", help="write the figures to this file too")
  args, overrides = parser.parse_known_args()
  work = open_workdir(args.workdir, overrides)
  if work.config.data.name != "phantom":
    raise UserError(f"{args.workdir} was trained on {work.config.data.name}: what was drawn is known of phantoms alone")
  figures = play(*looks(work, args.split))
  print(table(figures))
  if args.json:
    with open(args.json, "w") as file:
      json.dump(figures, file, indent=2)


def looks(work, split_name: str) -> tuple[dict, dict]:
  """Returns which patch was looked at, and which are right, for each finding that is stated rightly.

  Two mappings from (finding, V) to lists: int, the patch that was looked at; bool [V * P], which patches are hits.
  """
  split, config = work.open_split(split_name), work.config
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    member = load_model(work, mesh, split, log=lambda line: None)
    path = work.path / "eval" / f"{split_name}-{member.step}.jsonl"
    if not path.exists():
      raise UserError(f"{path} not found: run `mcsam evaluate --workdir {work.path} --split {split_name}` first")
    reports = [json.loads(line)["generated"] for line in path.read_text().splitlines()]
    ids = [work.tokenizer.encode_for_training(report, config.tokenizer.max_length)[1:] for report in reports]
    written = [GeneratedReport(record, report, own, 0.0) for record, (report, own) in enumerate(zip(reports, ids))]
    batches = eval_batches(split, work.tokenizer, config, config.decode.batch_size, load_split_features(work, split))
    explanations = explain_reports(member, config, work.tokenizer, mesh, batches, written,
                                   work.open_split("train").reports)
  looked, right = {}, {}
  for record, (report, explanation) in enumerate(zip(reports, explanations)):
    number = int(split.ids[record].rsplit("-", 1)[1])
    drawn = locate_findings((config.data.phantom.seed, SPLITS.index(split_name), number))
    ends = np.cumsum([len(word) + 1 for word in explanation.words])       # end of each word, with the space after it
    for finding, places in drawn.items():
      named = next((mention for mention in find_mentions(report)
                    if mention.finding == finding and mention.label == "positive"), None)
      if named is None:
        continue
      word = int(np.searchsorted(ends, named.end - 1, side="right"))           # the last word of the mention
      key = finding, explanation.maps.shape[1]
      looked.setdefault(key, []).append(int(explanation.maps[word].argmax()))
      right.setdefault(key, []).append(patches_on(places[:key[1]], work.patch_grid))
  return looked, right


def patches_on(places: tuple[np.ndarray, ...], grid: int) -> np.ndarray:
  """Returns which patches of all views, bool [V * P], lie on a finding."""
  on = []
  for place in places:                                                         # bool [256, 256]
    owner = np.arange(len(place)) * grid // len(place)
    share = np.zeros((grid, grid))
    np.add.at(share, (owner[:, None], owner[None, :]), place)
    count = np.bincount(owner, minlength=grid)
    on.append((share / (count[:, None] * count)).ravel() >= SHARE)
  return np.concatenate(on)


def play(looked: dict, right: dict) -> dict:
  """Returns by finding, and for all, how often maps hit; see `summary`."""
  rows = {}
  for key, patches in looked.items():
    hits = np.stack(right[key])[:, patches]                                    # [n, n]: does j's look hit i's finding
    kept = np.stack(right[key]).any(1)                                         # faint ones fill no patch by an eighth
    n = len(patches)
    own = np.diagonal(hits)
    another = (hits.sum(1) - own) / max(n - 1, 1) if n > 1 else np.full(n, np.nan)
    chance = np.stack(right[key]).mean(1)
    rows.setdefault(key[0], []).append(np.stack([own, another, chance])[:, kept])
  rows = {finding: np.concatenate(rows[finding], 1) for finding in PHANTOM_FINDINGS if finding in rows}
  rows["all"] = np.concatenate(list(rows.values()), 1)
  return {name: summary(*of[:, ~np.isnan(of[1])]) for name, of in rows.items()}


def summary(own: np.ndarray, another: np.ndarray, chance: np.ndarray, num_samples: int = 2000) -> dict:
  """Returns the means over n findings, and the interval of the difference, by the percentile bootstrap."""
  if not own.size:
    return {"n": 0}
  difference = own - another
  drawn = np.random.default_rng(0).integers(0, own.size, (num_samples, own.size))
  low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
  return {"n": own.size, "own": float(own.mean()), "another": float(another.mean()), "chance": float(chance.mean()),
          "more": float(difference.mean()), "low": float(low), "high": float(high)}


def table(figures: dict) -> str:
  lines = [f"{'finding':<18}{'n':>5}{'own map':>9}{'another’s':>11}{'chance':>8}{'more (95 % interval)':>30}"]
  for name, row in figures.items():
    if row["n"]:
      more = f"{row['more']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
      lines.append(f"{name:<18}{row['n']:>5}{row['own']:>9.1%}{row['another']:>11.1%}{row['chance']:>8.1%}{more:>30}")
  return "\n".join(lines)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"pointing_game.py: {error}")
