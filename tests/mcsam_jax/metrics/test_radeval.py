"""Scores of the package RadEval, replaced here by a fake with the interface of version 2.2."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.score_files import score_files
from mcsam_jax.metrics.bootstrap import resample
from mcsam_jax.metrics.radeval import add_radeval, compute_radeval, parse_score_names


@pytest.fixture
def radeval(monkeypatch):
  """Installs a fake RadEval, whose RadGraph counts common words; returns the list of its calls."""
  calls = []

  class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
      assert per_sample and not show_progress
      self.metrics = metrics

    def __call__(self, refs, hyps):
      calls.append(self.metrics)
      if self.metrics == ["green"]:
        raise OSError(f"no network for {refs[0]}")
      print(hyps[0])
      scores = [len(set(ref.split()) & set(hyp.split())) / 2 for ref, hyp in zip(refs, hyps)]
      if self.metrics == ["ratescore"]:
        return {"ratescore": np.mean(scores)}
      return {"radgraph_simple": scores, "radgraph_partial": [0.0 for _ in scores]}

  module = types.ModuleType("radeval")
  module.RadEval, module.__spec__ = RadEval, importlib.machinery.ModuleSpec("radeval", None)
  monkeypatch.setitem(sys.modules, "radeval", module)
  return calls


def test_each_study_gets_a_score(radeval, capsys):
  per_study = compute_radeval(["radgraph"], ["a b", "a b"], ["a b", "b c"])
  assert per_study.keys() == {"radgraph_simple", "radgraph_partial"} and radeval == [["radgraph"]]
  assert per_study["radgraph_simple"].tolist() == [1, 0.5]
  assert capsys.readouterr().out == ""                             # the fake prints reports, as RadEval does


def test_scores_are_added_and_a_failure_leaves_a_note(radeval):
  scores, rows = {"notes": {}, "intervals": {}}, [{"CIDEr": 1.0}, {"CIDEr": 2.0}]
  weights = resample("ab", seed=0)
  add_radeval(scores, rows, ["radgraph"], ["a b", "a b"], ["a b", "b c"], weights, lambda line: None)
  assert scores["radeval"]["radgraph_simple"] == 0.75
  assert scores["intervals"]["radeval"]["radgraph_simple"] == {"low": 0.5, "high": 1}
  assert rows[1] == {"CIDEr": 2, "radgraph_simple": 0.5, "radgraph_partial": 0}
  for name, message in (("green", "OSError"), ("ratescore", "2.2 or newer")):
    add_radeval(scores, rows, [name], ["a secret", "b"], ["a", "b"], weights, lambda line: None)
    assert scores["radeval"] is None and message in scores["notes"]["radeval"]
    assert "secret" not in scores["notes"]["radeval"]


def test_studies_without_a_score_are_left_out_of_the_mean(radeval):
  """One result lacks a score for the last of 30 studies, another for all of them."""
  def score_some(self, refs, hyps):
    return {"srr_f1": [1.0, 0.0, 0.5] * 9 + [0.5, 0.5, float("nan")], "srr_recall": [float("nan")] * 30}
  sys.modules["radeval"].RadEval.__call__ = score_some
  scores, rows = {"notes": {}, "intervals": {}}, [{} for _ in range(30)]
  add_radeval(scores, rows, ["srrbert"], ["a"] * 30, ["a"] * 30, resample(range(30), seed=0), lambda line: None)
  assert scores["radeval"] == {"srr_f1": pytest.approx(0.5), "srr_recall": None}
  intervals = scores["intervals"]["radeval"]
  assert 0.3 < intervals["srr_f1"]["low"] < 0.5 < intervals["srr_f1"]["high"] < 0.7 and intervals["srr_recall"] is None
  assert rows[0] == {"srr_f1": 1, "srr_recall": None} and rows[-1] == {"srr_f1": None, "srr_recall": None}
  json.loads(json.dumps([scores, rows], allow_nan=False))


def test_score_files_adds_radeval(radeval, tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  for name, reports in (("a", ["a b", "a b"]), ("b", ["a b", "b c"])):
    (tmp_path / f"{name}.txt").write_text("\n".join(reports))
  lines = []
  scores = score_files(str(tmp_path / "b.txt"), str(tmp_path / "a.txt"), radeval="radgraph", log=lines.append)
  assert scores["radeval"]["radgraph_simple"] == 0.75
  assert "radgraph_simple 0.750 (0.50-1.00), radgraph_partial 0.000 (.000-.000)" in lines[-1]


def test_score_names_are_checked(radeval):
  assert parse_score_names("") == [] == parse_score_names(load_config("mimic_cxr").eval.radeval)
  assert parse_score_names("radgraph, green") == ["radgraph", "green"]
  for field, message in (("crimson", "network"), ("radgraf", "radgraph"), ("bleu", "radeval=bleu")):
    with pytest.raises(UserError, match=message):
      parse_score_names(field)


def test_a_missing_package_is_a_user_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "radeval", None)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert parse_score_names("") == []
  with pytest.raises(UserError, match="radeval=radgraph.*pip install"):
    parse_score_names("radgraph")
