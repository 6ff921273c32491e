"""Tables of several runs: means and deviations by hand, formats, and runs that can't be compared."""

import csv
import io
import json

import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.tables.run_table import make_run_table, name_arm
from mcsam_jax.metrics.nlg import METRICS


def write_run(root, name, value, file="test-9.json", **changes):
  """Writes a workdir whose scores are all `value`; its constant baseline has half of it."""
  labels = lambda f1: {"micro": {"f1": f1}, "macro": {"f1": f1 / 10}}
  scores = {"split": "test", "num_studies": 4, "labeler": "rules", "preparation": {"main_protocol": "r2gen"},
            "nlg": {"r2gen": dict.fromkeys(METRICS, value)}, "labels": labels(value),
            "controls": {"shuffled_images": {"nlg": {"r2gen": dict.fromkeys(METRICS, 0.0)}, "labels": None}},
            "baselines": {"constant": {"nlg": dict.fromkeys(METRICS, value / 2), "labels": labels(value / 2)}}}
  scores |= changes
  (root / name / "eval").mkdir(parents=True, exist_ok=True)
  (root / name / "eval" / file).write_text(json.dumps(scores))
  return str(root / name)


@pytest.fixture
def runs(tmp_path):
  return [write_run(tmp_path, "ours-0", 0.2), write_run(tmp_path, "ours-1", 0.4), write_run(tmp_path, "other_x", 0.1)]


def make(paths, **options):
  return make_run_table(paths, log=lambda line: None, **options)


def test_mean_and_standard_deviation_by_hand(runs):
  lines = make(runs).splitlines()
  header, ours, other, shuffled, constant = (line.split(" | ") for line in [lines[0], *lines[2:]])
  assert len(header) == len(ours) and ours[0] == "| ours (2 runs)" and other[0] == "| other_x"
  assert set(ours[1:-2]) == {"0.300 ± 0.141"}                          # sqrt((0.1^2 + 0.1^2) / 1)
  assert ours[-2:] == ["0.300 ± 0.141", "0.030 ± 0.014 |"] and set(other[1:-1]) == {"0.100"}
  assert shuffled[1] == "0.000" and shuffled[-1] == "- |" and constant[1] == "0.100"
  assert len(make(runs, baselines=False).splitlines()) == 4


def test_csv_and_latex_hold_the_same_rows(runs, tmp_path):
  rows = list(csv.DictReader(io.StringIO(make(runs, table_format="csv"))))
  assert [row["name"] for row in rows[:2]] == ["ours", "other_x"] and rows[0]["runs"] == "2"
  assert float(rows[0]["CIDEr mean"]) == pytest.approx(0.3) and float(rows[0]["CIDEr sd"]) == pytest.approx(0.02 ** 0.5)
  assert rows[1]["CIDEr sd"] == ""
  make(runs, table_format="latex", out=str(tmp_path / "t.tex"))
  latex = (tmp_path / "t.tex").read_text()
  assert r"other\_x & 0.100" in latex and r"0.300 $\pm$ 0.141" in latex and latex.count(r"\\") == 5


def test_names_of_arms():
  assert [name_arm(name) for name in ("iu-0", "iu_12", "iu.seed3", "iu", "7")] == ["iu", "iu", "iu", "iu", "7"]


def test_runs_that_cannot_be_compared_are_named(runs, tmp_path):
  for changes in ({"num_studies": 5}, {"labeler": "chexbert"}, {"split": "val"}):
    other = write_run(tmp_path, "odd", 0.1, **changes)
    with pytest.raises(UserError, match=rf"ours-0.*odd.*{next(iter(changes))}"):
      make([runs[0], other])


def test_missing_ambiguous_and_damaged_scores_are_named(runs, tmp_path):
  with pytest.raises(UserError, match="ours-0.*val"):
    make(runs, split="val")
  write_run(tmp_path, "ours-0", 0.3, file="test-9-beam_size=1.json")
  with pytest.raises(UserError, match="test-9-beam_size=1.json"):
    make(runs)
  chosen = str(tmp_path / "ours-0" / "eval" / "test-9-beam_size=1.json")
  assert "ours (2 runs) | 0.350" in make([chosen, runs[1]])
  for content in ("[]", "{}", "{", '{"nlg": {"r2gen": {}}, "num_studies": 1}'):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match="bad.json"):
      make([str(tmp_path / "bad.json")])
  with pytest.raises(UserError, match="absent"):
    make([str(tmp_path / "absent")])
