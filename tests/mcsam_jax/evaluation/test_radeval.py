"""Scores through the package RadEval, of whose interface (2.2) a small one stands in here."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest

from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.evaluate import add_radeval
from mcsam_jax.evaluation.radeval import radeval_scores, score_names


@pytest.fixture
def radeval(monkeypatch):
  """Returns the calls that the stand-in gets: its RadGraph counts words in common."""
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


def test_scores_and_their_means(radeval, capsys):
  means, per_study = radeval_scores(["radgraph"], ["a b", "a b"], ["a b", "b c"])
  assert means == {"radgraph_simple": 0.75, "radgraph_partial": 0} and radeval == [["radgraph"]]
  assert per_study["radgraph_simple"].tolist() == [1, 0.5]
  assert capsys.readouterr().out == ""                             # a package that prints reports prints them to nobody


def test_scores_are_added_to_studies_and_a_failure_costs_nothing(radeval):
  scores, rows = {"notes": {}}, [{"CIDEr": 1.0}, {"CIDEr": 2.0}]
  add_radeval(scores, rows, ["radgraph"], ["a b", "a b"], ["a b", "b c"], lambda line: None)
  assert scores["radeval"]["radgraph_simple"] == 0.75
  assert rows[1] == {"CIDEr": 2, "radgraph_simple": 0.5, "radgraph_partial": 0}
  for name, message in (("green", "OSError"), ("ratescore", "2.2 or newer")):
    add_radeval(scores, rows, [name], ["a secret", "b"], ["a", "b"], lambda line: None)
    assert scores["radeval"] is None and message in scores["notes"]["radeval"]
    assert "secret" not in scores["notes"]["radeval"]


def test_names_are_checked(radeval):
  assert score_names("") == [] == score_names(load_config("mimic_cxr").eval.radeval)
  assert score_names("radgraph, green") == ["radgraph", "green"]
  for field, message in (("crimson", "network"), ("radgraf", "did you mean radgraph"), ("bleu", "known are")):
    with pytest.raises(UserError, match=message):
      score_names(field)


def test_without_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "radeval", None)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert score_names("") == []
  with pytest.raises(UserError, match=r"needs the package RadEval.*pip install"):
    score_names("radgraph")
