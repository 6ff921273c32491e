"""The labeler that a config names, and its interface."""

import dataclasses

import jax
import numpy as np
import pytest

from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.labelers.chexbert import CheXbertClassifier
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.registry import make_labeler
from mcsam_jax.models.text_labeler.bert import BertConfig
from mcsam_jax.models.text_labeler.chexbert import variable_shapes


def config(*fields, name="phantom"):
  return load_config(name, [f"--config.{field}" for field in fields])


def test_equal_reports_are_labeled_once():
  calls = []
  labeler = Labeler("x", ("Edema",), lambda reports: calls.append(reports) or [{"Edema": text} for text in reports])
  assert labeler.label(["b", "a", "b"]) == [{"Edema": "b"}, {"Edema": "a"}, {"Edema": "b"}]
  assert labeler.label([]) == [] and calls == [["b", "a"]]


def test_phantom_labeler_and_none():
  labeler = make_labeler(config())
  assert labeler.findings == tuple(PHANTOM_FINDINGS) and make_labeler(config("eval.labeler=none")) is None
  assert set(labeler.label(["the heart is normal in size ."])[0].values()) <= set(LABEL_VALUES)
  with pytest.raises(UserError, match="eval.labeler=phantom.*data.name=r2gen_json"):
    config("eval.labeler=phantom", name="iu_xray")


@pytest.mark.parametrize("name", ["iu_xray", "mimic_cxr", "r2gencmn"])
def test_real_reports_are_labeled_by_rules(name):
  labeler = make_labeler(config(name=name))
  assert labeler.name == "rules" and labeler.findings == FINDINGS
  (labels,) = labeler.label(["mild edema . no pleural effusion ."])
  assert (labels["Edema"], labels["Pleural Effusion"], labels["Fracture"]) == ("positive", "negative", "absent")


def test_chexbert_is_loaded_from_its_file(tmp_path):
  sizes = BertConfig(vocab_size=6, width=32, num_layers=1, num_heads=4, feedforward_width=32, max_length=32)
  pieces, draw = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "clear", "lungs"], np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape).astype(np.float32), variable_shapes(sizes))
  save_weights(tmp_path / "c.npz", variables, {"architecture": "chexbert", "sizes": dataclasses.asdict(sizes),
                                               "vocabulary": pieces})
  labeler = make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'c.npz'}", name="mimic_cxr"))
  reports = ["clear lungs", "lungs", "clear lungs"]
  assert labeler.findings == FINDINGS
  assert labeler.label(reports) == CheXbertClassifier(variables, pieces, sizes).classify(reports)
  with pytest.raises(UserError, match="eval.labeler=chexbert.*import-weights"):
    make_labeler(config("eval.labeler=chexbert"))
  with pytest.raises(UserError, match="absent.npz.*import-weights chexbert"):
    make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'absent.npz'}"))
  save_weights(tmp_path / "e.npz", {"params": {"a": np.zeros(1)}}, {"architecture": "resnet50"})
  with pytest.raises(UserError, match="e.npz.*resnet50"):
    make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'e.npz'}"))
