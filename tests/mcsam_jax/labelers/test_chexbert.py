"""A small CheXbert against a NumPy implementation of BERT that processes one report at a time."""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax import findings
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.errors import UserError
from mcsam_jax.labelers import chexbert
from mcsam_jax.labelers.chexbert import CheXbertClassifier, CLASSES
from mcsam_jax.models.text_labeler.bert import BertConfig
from mcsam_jax.models.text_labeler.chexbert import variable_shapes
from tests.testing import simulated_devices
from tests.testing.foreign.memory import limited_memory

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz."]
CONFIG = BertConfig(vocab_size=len(VOCABULARY), width=32, num_layers=2, num_heads=4, feedforward_width=48,
                    max_length=200)


def random_variables(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), variable_shapes(config))


def random_reports(count, max_words, seed=0):
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice([*"abcdefghij", "."], size)) for size in rng.integers(0, max_words, count)]


@pytest.mark.parametrize("change", [
    {"sizes": None}, {"sizes": []}, {"sizes": {"width": 32}}, {"sizes": {"extra": 1}},
    {"sizes": {"num_layers": 10 ** 9}}, {"sizes": {"width": 2 ** 40}}, {"sizes": {"width": "32"}},
    {"sizes": {"num_heads": 0}}, {"sizes": {"num_heads": 5}}, {"vocabulary": None}, {"vocabulary": "abc"},
    {"vocabulary": [1] * len(VOCABULARY)}, {"vocabulary": VOCABULARY[:-1]}, {"vocabulary": ["x", *VOCABULARY[1:]]},
    {"architecture": "resnet50"}, {"architecture": 3}])
def test_a_file_that_nobody_imported_is_named(tmp_path, change):
  path = tmp_path / "chexbert.npz"
  meta = {"architecture": "chexbert", "sizes": dataclasses.asdict(CONFIG), "vocabulary": VOCABULARY}
  if isinstance(change.get("sizes"), dict) and change["sizes"] != {"width": 32}:
    change = {"sizes": meta["sizes"] | change["sizes"]}
  save_weights(path, random_variables(CONFIG), meta)
  assert chexbert.load_chexbert(str(path))[2] == CONFIG
  save_weights(path, random_variables(CONFIG), meta | change)
  with limited_memory(2 ** 30), pytest.raises(UserError, match=str(path)) as error:
    chexbert.load_chexbert(str(path))
  assert "\n" not in str(error.value)


def compute_numpy_logits(params, ids, num_heads):
  """Returns float64 [14, up to 4] for the tokens of one report."""
  def dense(name, x, layer):
    return x @ layer[name]["kernel"] + layer[name]["bias"]

  def layer_norm(x, norm):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * norm["scale"] + norm["bias"]

  params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
  bert = params["bert"]
  embeddings = bert["embeddings"]
  states = layer_norm(embeddings["word"][ids] + embeddings["position"][:len(ids)] + embeddings["token_type"][0],
                      embeddings["norm"])
  for number in range(sum(name.startswith("layer_") for name in bert)):
    layer = bert[f"layer_{number}"]
    query, key, value = (np.split(dense(name, states, layer), num_heads, -1) for name in ("query", "key", "value"))
    heads = []
    for q, k, v in zip(query, key, value):
      scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
      heads.append(scores / scores.sum(-1, keepdims=True) @ v)
    states = layer_norm(states + dense("attention_output", np.concatenate(heads, -1), layer), layer["attention_norm"])
    hidden = dense("hidden", states, layer)
    hidden = hidden * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(hidden)
    states = layer_norm(states + dense("output", hidden, layer), layer["output_norm"])
  return [dense(f"head_{number}", states[0], params) for number in range(14)]


def test_logits_of_packed_reports_equal_those_of_each_report_alone():
  variables, reports = random_variables(CONFIG), ["", *random_reports(20, 60), " ".join("abc" * 100)]
  classifier = CheXbertClassifier(variables, VOCABULARY, CONFIG, tokens_per_device=512)
  logits = classifier.compute_logits(reports)
  assert logits.shape == (22, 14, 4) and np.isneginf(logits[:, 13, 2:]).all() and np.isfinite(logits[:, :13]).all()
  for report, report_logits in zip(reports, logits):
    ids = classifier.tokenizer.encode(report, CONFIG.max_length)
    for row, expected in zip(report_logits, compute_numpy_logits(variables["params"], ids, CONFIG.num_heads)):
      np.testing.assert_allclose(row[:len(expected)], expected, atol=1e-4)
  assert len(classifier.tokenizer.encode(reports[-1], 200)) == 200        # truncated, and classified all the same
  assert classifier.compute_logits([]).shape == (0, 14, 4)

  labels = classifier.classify(reports)
  assert labels[3] == {finding: CLASSES[row.argmax()] for finding, row in zip(chexbert.FINDINGS, logits[3])}
  assert {label["No Finding"] for label in labels} <= {"absent", "positive"}
  assert {value for label in labels for value in label.values()} == set(CLASSES)


def test_bfloat16_is_near_float32():
  variables, reports = random_variables(CONFIG), random_reports(4, 40)
  exact, rounded = (CheXbertClassifier(variables, VOCABULARY, CONFIG, dtype=dtype).compute_logits(reports)[:, :13]
                    for dtype in (jnp.float32, jnp.bfloat16))
  assert 0 < np.abs(exact - rounded).max() < 0.5 < exact.std()


def test_findings_and_classes_are_those_of_this_project():
  assert set(chexbert.FINDINGS) == set(findings.FINDINGS) and len(chexbert.FINDINGS) == 14
  assert set(CLASSES) == set(findings.LABEL_VALUES)


@pytest.mark.slow
def test_four_devices_give_the_logits_of_one(tmp_path):
  """Runs in a process of its own, whose CPU counts as four devices, while the caller has set another mesh."""
  variables, reports = random_variables(CONFIG), random_reports(60, 60)
  expected = CheXbertClassifier(variables, VOCABULARY, CONFIG).compute_logits(reports)
  script = f"""
import importlib.util, jax, numpy as np
spec = importlib.util.spec_from_file_location("test_chexbert", {__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)
with jax.set_mesh(jax.make_mesh((4,), ("other",), (jax.sharding.AxisType.Auto,))):
  variables = module.random_variables(module.CONFIG)
  classifier = module.CheXbertClassifier(variables, module.VOCABULARY, module.CONFIG, mesh)
  np.save({str(tmp_path / "logits.npy")!r}, classifier.compute_logits(module.random_reports(60, 60)))
"""
  subprocess.run([sys.executable, "-c", script], check=True, env={
      **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated_devices.make_xla_flags(4),
      "PYTHONPATH": os.pathsep.join(sys.path)})
  np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)
