"""The pointing game counts maps that point at the drawn finding, beside other studies' maps and a random patch."""

from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline.datasets.phantom.anatomy import locate_findings
from input_pipeline.datasets.phantom.dataset import make_record
from mcsam_jax.explain.explanations import Explanation
from mcsam_jax.explain.pointing_game import (
  find_target_patches,
  locate_mentioned_findings,
  play_pointing_game,
  score_maps,
)

GRID = 7


def test_hit_rates_by_hand():
  """Two effusions: one map hits, the other one points where the first one's finding is."""
  patches = {("Pleural Effusion", 1): [0, 0]}
  targets = {("Pleural Effusion", 1): [np.array([True, False, False, False]), np.array([False, False, True, True])]}
  rates = score_maps(patches, targets)["Pleural Effusion"]
  assert (rates["n"], rates["own_map"], rates["another_map"]) == (2, 0.5, 0.5)
  assert rates["random_patch"] == pytest.approx((1 / 4 + 2 / 4) / 2) and rates["low"] <= 0 <= rates["high"]
  assert score_maps({}, {}) == {}


def test_a_patch_is_a_target_if_an_eighth_of_it_changed():
  mask = np.zeros((256, 256), bool)
  mask[:5, :32] = True                                    # 5 of the 32 rows of the first patch of an 8 x 8 grid
  assert np.flatnonzero(find_target_patches((np.zeros_like(mask), mask), 8)).tolist() == [64]
  mask[3:5] = False
  assert not find_target_patches((mask,), 8).any()


@pytest.mark.parametrize("hits", [True, False])
def test_maps_that_point_at_the_findings_always_or_never_hit(hits):
  records = [make_record(0, "test", number) for number in range(12)]
  split = SimpleNamespace(name="test", ids=[record["id"] for record in records])
  reports, explanations, num_mentioned = [], [], 0
  for number, record in enumerate(records):
    reports.append(record["findings"].lower())
    words = reports[-1].split()
    maps = np.zeros((len(words), len(record["images"]), GRID * GRID), np.uint8)
    masks = locate_findings((0, 2, number))
    is_target = {finding: find_target_patches(mask, GRID) for finding, mask in masks.items()}
    effusion = is_target.get("Pleural Effusion")
    for word, name in enumerate(words):
      if effusion is not None and effusion.any() and name.startswith("effusion"):
        maps[word].ravel()[:] = 255 * (effusion == hits)
    num_mentioned += effusion is not None and effusion.any()
    explanations.append(Explanation(words, np.zeros(len(words), np.float32), maps, [], []))
  located = locate_mentioned_findings(0, split, range(len(records)), reports, GRID)
  rates = play_pointing_game(located, explanations)
  assert rates["Pleural Effusion"]["own_map"] == float(hits) and 0 < rates["Pleural Effusion"]["n"] <= num_mentioned
