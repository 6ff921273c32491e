"""The pointing game (Zhang et al., ECCV 2016) on phantoms, whose findings have known locations.

Is the patch with the highest value in the heat map of a finding's word on the finding? Each drawn finding counts that
the generated report mentions as positive. The patch is chosen among the patches of all views. It is a hit if the
finding changed at least an eighth of the patch's pixels. Three shares of hits are compared:

  own_map       the map of the word that names the finding (`effusion`)
  another_map   the maps of the same finding's word in all other studies that mention it and have the same number of
                views: how much follows from where such findings usually are
  random_patch  any patch

Shapes: V views, P patches per view, n mentioned findings.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from input_pipeline.datasets.phantom.anatomy import locate_findings
from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from input_pipeline.datasets.phantom.reports import find_mentions
from input_pipeline.datasets.records import SPLITS
from input_pipeline.splits import Split
from mcsam_jax.explain.explanations import Explanation

MIN_CHANGED_PIXELS = 1 / 8                   # share of a patch's pixels
MAX_STUDIES = 500                            # drawing the findings of a study takes some 50 ms

MapGroup = tuple[str, int]                   # (finding, V): maps of one group can be compared with each other


@dataclasses.dataclass(frozen=True)
class MentionedFinding:
  """A drawn finding that the generated report mentions as positive."""
  finding: str
  mention_end: int             # end of the mention in the report, in characters
  is_target: np.ndarray        # which patches of all drawn views are on the finding, bool [views * P]


def locate_mentioned_findings(seed: int, split: Split, records: Sequence[int], reports: Sequence[str],
                              grid: int) -> list[list[MentionedFinding]]:
  """Returns the drawn findings that each report mentions, with their patches; draws the studies again.

  Args:
    seed: of the phantoms (data.phantom.seed).
    split: a split of phantoms.
    records: the studies; the first MAX_STUDIES are used.
    reports: the generated report of each study.
    grid: number of patches per image side; P = grid ** 2.
  """
  located = []
  for record, report in list(zip(records, reports))[:MAX_STUDIES]:
    mentions = {mention.finding: mention for mention in reversed(find_mentions(report)) if mention.label == "positive"}
    number = int(split.ids[record].rsplit("-", 1)[1])
    study_seed = seed, SPLITS.index(split.name), number
    masks = locate_findings(study_seed, only=tuple(mentions)) if mentions else {}
    located.append([MentionedFinding(finding, mentions[finding].end, find_target_patches(masks[finding], grid))
                    for finding in masks])
  return located


def play_pointing_game(located: Sequence[Sequence[MentionedFinding]],
                       explanations: Sequence[Explanation]) -> dict[str, dict]:
  """Returns the hit rates by finding, and of all findings together as "all"; see `summarize`.

  Args:
    located: the mentioned findings of each study.
    explanations: of the generated report of each study; further ones are ignored.
  """
  top_patches, target_patches = {}, {}
  for mentioned, explanation in zip(located, explanations):
    word_ends = np.cumsum([len(word) + 1 for word in explanation.words])       # each includes the space after the word
    _, num_views, patches_per_view = explanation.maps.shape
    for each in mentioned:
      word = int(np.searchsorted(word_ends, each.mention_end - 1, side="right"))    # the mention's last word
      group = each.finding, num_views
      top_patches.setdefault(group, []).append(int(explanation.maps[word].argmax()))
      target_patches.setdefault(group, []).append(each.is_target[:num_views * patches_per_view])
  return score_maps(top_patches, target_patches)


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
  """Returns the hit rates by finding, and of all findings together as "all"; see `summarize`.

  Args:
    top_patches: for each mentioned finding the index in [0, V * P) of the patch with the highest value.
    target_patches: for each mentioned finding which patches are on it, bool [V * P].
  """
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
  if not rates:
    return {}
  rates["all"] = np.concatenate(list(rates.values()), 1)
  return {name: summarize(*values[:, ~np.isnan(values[1])]) for name, values in rates.items()}


def summarize(own: np.ndarray, another: np.ndarray, random_patch: np.ndarray, num_samples: int = 2000) -> dict:
  """Returns the mean hit rates over n findings, and a percentile bootstrap interval of own minus another's.

  Args:
    own, another, random_patch: hit rate of each finding [n], by the study's own map, the maps of other studies, and a
      random patch.
    num_samples: number of bootstrap samples.

  Returns:
    {"n", "own_map", "another_map", "random_patch", "difference", "low", "high"}; {"n": 0} without a finding.
  """
  if not own.size:
    return {"n": 0}
  difference = own - another
  resampled = np.random.default_rng(0).integers(0, own.size, (num_samples, own.size))
  low, high = np.percentile(difference[resampled].mean(1), [2.5, 97.5])
  return {"n": own.size, "own_map": float(own.mean()), "another_map": float(another.mean()),
          "random_patch": float(random_patch.mean()), "difference": float(difference.mean()), "low": float(low),
          "high": float(high)}
