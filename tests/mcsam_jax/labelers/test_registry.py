"""Which labeler a config means, and how it is asked."""

import dataclasses

import jax
import numpy as np
import pytest

from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.labelers.chexbert import CheXbertReader
from mcsam_jax.labelers.registry import Labeler, make_labeler
from mcsam_jax.models.bert import BertConfig
from mcsam_jax.models.chexbert import variable_shapes


def config(*fields, name="phantom"):
  return load_config(name, [f"--config.{field}" for field in fields])


def test_equal_reports_are_read_once():
  asked = []
  labeler = Labeler("x", ("Edema",), lambda reports: asked.append(reports) or [{"Edema": text} for text in reports])
  assert labeler.read(["b", "a", "b"]) == [{"Edema": "b"}, {"Edema": "a"}, {"Edema": "b"}]
  assert labeler("a") == {"Edema": "a"} and labeler.read([]) == [] and asked == [["b", "a"], ["a"]]


def test_phantom_and_none():
  labeler = make_labeler(config())
  assert labeler.findings == tuple(PHANTOM_FINDINGS) and make_labeler(config("eval.labeler=none")) is None
  assert set(labeler("the heart is normal in size .").values()) <= set(LABEL_VALUES)
  with pytest.raises(UserError, match="set rules for data.name=r2gen_json"):
    config("eval.labeler=phantom", name="iu_xray")


@pytest.mark.parametrize("name", ["iu_xray", "mimic_cxr", "r2gencmn"])
def test_real_reports_are_read_by_rules(name):
  labeler = make_labeler(config(name=name))
  assert labeler.name == "rules" and labeler.findings == FINDINGS
  labels = labeler("mild edema . no pleural effusion .")
  assert (labels["Edema"], labels["Pleural Effusion"], labels["Fracture"]) == ("positive", "negative", "absent")


def test_chexbert_from_its_file(tmp_path):
  sizes = BertConfig(vocab_size=6, width=32, num_layers=1, num_heads=4, feedforward_width=32, max_length=32)
  pieces, draw = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "clear", "lungs"], np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape).astype(np.float32), variable_shapes(sizes))
  save_weights(tmp_path / "c.npz", variables, {"architecture": "chexbert", "sizes": dataclasses.asdict(sizes),
                                               "vocabulary": pieces})
  labeler = make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'c.npz'}", name="mimic_cxr"))
  reports = ["clear lungs", "lungs", "clear lungs"]
  assert labeler.findings == FINDINGS
  assert labeler.read(reports) == CheXbertReader(variables, pieces, sizes).read(reports)
  with pytest.raises(UserError, match="needs its weights"):
    make_labeler(config("eval.labeler=chexbert"))
  with pytest.raises(UserError, match="absent.npz not found: get the authors'"):
    make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'absent.npz'}"))
  save_weights(tmp_path / "e.npz", {"params": {"a": np.zeros(1)}}, {"architecture": "resnet50"})
  with pytest.raises(UserError, match="e.npz holds resnet50"):
    make_labeler(config("eval.labeler=chexbert", f"eval.chexbert={tmp_path / 'e.npz'}"))
