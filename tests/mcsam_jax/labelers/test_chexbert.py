"""CheXbert, small, against a BERT that is written out in NumPy and reads one report at a time."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.datasets import findings
from mcsam_jax.labelers import chexbert
from mcsam_jax.labelers.chexbert import CheXbertReader, CLASSES
from mcsam_jax.models.bert import BertConfig
from mcsam_jax.models.chexbert import variable_shapes
from tests.testing import simulated_devices

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz."]
SIZES = BertConfig(vocab_size=len(PIECES), width=32, num_layers=2, num_heads=4, feedforward_width=48, max_length=200)


def random_variables(sizes, seed=0):
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype(np.float32), variable_shapes(sizes))


def random_reports(count, longest, seed=0):
  draw = np.random.default_rng(seed)
  return [" ".join(draw.choice([*"abcdefghij", "."], size)) for size in draw.integers(0, longest, count)]


def logits_by_numpy(params, ids, num_heads):
  """Returns float64 [14, up to 4] for the tokens of one report."""
  def dense(name, x, of):
    return x @ of[name]["kernel"] + of[name]["bias"]

  def norm(x, of):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * of["scale"] + of["bias"]

  params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
  bert = params["bert"]
  table = bert["embeddings"]
  states = norm(table["word"][ids] + table["position"][:len(ids)] + table["token_type"][0], table["norm"])
  for number in range(sum(name.startswith("layer_") for name in bert)):
    layer = bert[f"layer_{number}"]
    query, key, value = (np.split(dense(name, states, layer), num_heads, -1) for name in ("query", "key", "value"))
    responses = []
    for q, k, v in zip(query, key, value):
      scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
      responses.append(scores / scores.sum(-1, keepdims=True) @ v)
    states = norm(states + dense("attention_output", np.concatenate(responses, -1), layer), layer["attention_norm"])
    hidden = dense("hidden", states, layer)
    hidden = hidden * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(hidden)
    states = norm(states + dense("output", hidden, layer), layer["output_norm"])
  return [dense(f"head_{number}", states[0], params) for number in range(14)]


def test_logits_are_those_of_each_report_alone(compiled_quickly):
  variables, reports = random_variables(SIZES), ["", *random_reports(20, 60), " ".join("abc" * 100)]
  reader = CheXbertReader(variables, PIECES, SIZES, tokens_a_device=512)
  found = reader.logits(reports)
  assert found.shape == (22, 14, 4) and np.isneginf(found[:, 13, 2:]).all() and np.isfinite(found[:, :13]).all()
  for report, logits in zip(reports, found):
    wanted = logits_by_numpy(variables["params"], reader.tokenizer.encode(report, SIZES.max_length), SIZES.num_heads)
    for row, head in zip(logits, wanted):
      np.testing.assert_allclose(row[:len(head)], head, atol=1e-4)
  assert len(reader.tokenizer.encode(reports[-1], 200)) == 200            # cut, and read all the same
  assert reader.logits([]).shape == (0, 14, 4)

  labels = reader.read(reports)
  assert labels[3] == {finding: CLASSES[row.argmax()] for finding, row in zip(chexbert.FINDINGS, found[3])}
  assert {label["No Finding"] for label in labels} <= {"absent", "positive"}
  assert {value for label in labels for value in label.values()} == set(CLASSES)


def test_bfloat16_is_near_float32():
  variables, reports = random_variables(SIZES), random_reports(4, 40)
  whole, rounded = (CheXbertReader(variables, PIECES, SIZES, dtype=dtype).logits(reports)[:, :13]
                    for dtype in (jnp.float32, jnp.bfloat16))
  assert 0 < np.abs(whole - rounded).max() < 0.5 < whole.std()


def test_findings_and_classes_are_those_of_this_project():
  assert set(chexbert.FINDINGS) == set(findings.FINDINGS) and len(chexbert.FINDINGS) == 14
  assert set(CLASSES) == set(findings.LABEL_VALUES)


@pytest.mark.slow
def test_four_devices_read_what_one_does(tmp_path):
  """In a process of its own, whose CPU counts as four devices, inside another mesh of the caller's."""
  variables, reports = random_variables(SIZES), random_reports(60, 60)
  wanted = CheXbertReader(variables, PIECES, SIZES).logits(reports)
  script = f"""
import importlib.util, jax, numpy as np
spec = importlib.util.spec_from_file_location("test_chexbert", {__file__!r})
here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)
with jax.set_mesh(jax.make_mesh((4,), ("other",), (jax.sharding.AxisType.Auto,))):
  reader = here.CheXbertReader(here.random_variables(here.SIZES), here.PIECES, here.SIZES, mesh)
  np.save({str(tmp_path / "found.npy")!r}, reader.logits(here.random_reports(60, 60)))
"""
  subprocess.run([sys.executable, "-c", script], check=True, env={
      **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated_devices.flags(4),
      "PYTHONPATH": os.pathsep.join(sys.path)})
  np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-4)
