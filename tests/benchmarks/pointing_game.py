"""Plays the pointing game (Zhang et al., ECCV 2016) with heat maps of phantoms, whose findings have known locations.

    mcsam evaluate --workdir W --split test
    python tests/benchmarks/pointing_game.py --workdir W --split test

Counts each drawn finding that the generated report mentions as positive. The patch with the highest value is taken from
the heat map of the word that names the finding (`effusion`), among the patches of all views. It is a hit if it lies on
the finding: if the finding changed at least an eighth of the patch's pixels. The columns are:

  own map              share of hits
  another study's map  the same for the maps of the same finding's word in all other studies that mention it and have
                       the same number of views. It shows how much follows from where such findings usually are
  random patch         share of all patches that would be hits
  own minus another's  the difference, with a 95 % interval (bootstrap over findings)
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

MIN_CHANGED_PIXELS = 1 / 8                   # share of a patch's pixels

MapGroup = tuple[str, int]                   # (finding, V): maps of one group can be compared with each other


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--split", default="test")
  parser.add_argument("--json", help="also write the results to this file")
  args, overrides = parser.parse_known_args()
  work = open_workdir(args.workdir, overrides)
  if work.config.data.name != "phantom":
    raise UserError(f"{args.workdir} was trained on data.name={work.config.data.name}; expected phantom, the only "
                    "dataset with known locations of findings")
  results = score_maps(*collect_maps(work, args.split))
  print(format_table(results))
  if args.json:
    with open(args.json, "w") as file:
      json.dump(results, file, indent=2)


def collect_maps(work, split_name: str) -> tuple[dict[MapGroup, list[int]], dict[MapGroup, list[np.ndarray]]]:
  """Explains the generated reports of a split and locates the drawn findings that they mention as positive.

  Returns:
    By (finding, V), one item per mentioned finding: the index of the patch with the highest value in the word's heat
    map, int in [0, V * P); and which patches are on the finding, bool [V * P].
  """
  split, config = work.open_split(split_name), work.config
  mesh = make_mesh(config)
  with jax.set_mesh(mesh):
    loaded = load_model(work, mesh, log=lambda line: None)
    path = work.path / "eval" / f"{split_name}-{loaded.step}.jsonl"
    if not path.exists():
      raise UserError(f"{path} not found: run `mcsam evaluate --workdir {work.path} --split {split_name}` first")
    reports = [json.loads(line)["generated"] for line in path.read_text().splitlines()]
    token_ids = [work.tokenizer.encode_for_training(report, config.tokenizer.max_length)[1:] for report in reports]
    generated = [GeneratedReport(record, report, ids, 0.0)
                 for record, (report, ids) in enumerate(zip(reports, token_ids))]
    batches = eval_batches(split, work.tokenizer, config, config.decode.batch_size, load_split_features(work, split))
    explanations = explain_reports(loaded, config, work.tokenizer, mesh, batches, generated,
                                   work.open_split("train").reports)
  top_patches, target_patches = {}, {}
  for record, (report, explanation) in enumerate(zip(reports, explanations)):
    number = int(split.ids[record].rsplit("-", 1)[1])
    finding_masks = locate_findings((config.data.phantom.seed, SPLITS.index(split_name), number))
    word_ends = np.cumsum([len(word) + 1 for word in explanation.words])       # each includes the space after the word
    for finding, masks in finding_masks.items():
      mention = next((mention for mention in find_mentions(report)
                      if mention.finding == finding and mention.label == "positive"), None)
      if mention is None:
        continue
      word = int(np.searchsorted(word_ends, mention.end - 1, side="right"))    # the last word of the mention
      group = finding, explanation.maps.shape[1]
      top_patches.setdefault(group, []).append(int(explanation.maps[word].argmax()))
      target_patches.setdefault(group, []).append(find_target_patches(masks[:group[1]], work.patch_grid))
  return top_patches, target_patches


def find_target_patches(masks: tuple[np.ndarray, ...], grid: int) -> np.ndarray:
  """Returns which patches of all views are on a finding, bool [V * P].

  Args:
    masks: the finding's pixels, bool [256, 256], one per view.
    grid: number of patches per image side; P = grid ** 2.
  """
  is_target = []
  for mask in masks:
    patch_index = np.arange(len(mask)) * grid // len(mask)   # for each pixel row and column
    changed_pixels = np.zeros((grid, grid))
    np.add.at(changed_pixels, (patch_index[:, None], patch_index[None, :]), mask)
    side = np.bincount(patch_index, minlength=grid)
    is_target.append((changed_pixels / (side[:, None] * side)).ravel() >= MIN_CHANGED_PIXELS)
  return np.concatenate(is_target)


def score_maps(top_patches: dict[MapGroup, list[int]], target_patches: dict[MapGroup, list[np.ndarray]]) -> dict:
  """Returns the hit rates by finding, and of all findings together as "all"; see `summarize`."""
  rates = {}
  for group, patches in top_patches.items():
    targets = np.stack(target_patches[group])                                  # [n, V * P]
    hits = targets[:, patches]                                                 # [n, n]: is j's top patch on i's finding
    has_target = targets.any(1)                                                # faint findings may have no target patch
    n = len(patches)
    own = np.diagonal(hits)
    another = (hits.sum(1) - own) / max(n - 1, 1) if n > 1 else np.full(n, np.nan)
    random_patch = targets.mean(1)
    rates.setdefault(group[0], []).append(np.stack([own, another, random_patch])[:, has_target])
  rates = {finding: np.concatenate(rates[finding], 1) for finding in PHANTOM_FINDINGS if finding in rates}
  rates["all"] = np.concatenate(list(rates.values()), 1)
  return {name: summarize(*values[:, ~np.isnan(values[1])]) for name, values in rates.items()}


def summarize(own: np.ndarray, another: np.ndarray, random_patch: np.ndarray, num_samples: int = 2000) -> dict:
  """Returns the mean hit rates over n findings, and a percentile bootstrap interval of own minus another's.

  Args:
    own, another, random_patch: hit rate of each finding [n], by the study's own map, the maps of other studies, and a
      random patch.
    num_samples: number of bootstrap samples.
  """
  if not own.size:
    return {"n": 0}
  difference = own - another
  resampled = np.random.default_rng(0).integers(0, own.size, (num_samples, own.size))
  low, high = np.percentile(difference[resampled].mean(1), [2.5, 97.5])
  return {"n": own.size, "own_map": float(own.mean()), "another_map": float(another.mean()),
          "random_patch": float(random_patch.mean()), "difference": float(difference.mean()), "low": float(low),
          "high": float(high)}


def format_table(results: dict) -> str:
  """Returns a table with one line per finding."""
  lines = [f"{'finding':<18}{'n':>5}{'own map':>9}{'another study’s map':>21}{'random patch':>14}"
           f"{'own minus another’s (95 % interval)':>37}"]
  for name, row in results.items():
    if row["n"]:
      difference = f"{row['difference']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
      lines.append(f"{name:<18}{row['n']:>5}{row['own_map']:>9.1%}{row['another_map']:>21.1%}"
                   f"{row['random_patch']:>14.1%}{difference:>37}")
  return "\n".join(lines)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"pointing_game.py: {error}")
