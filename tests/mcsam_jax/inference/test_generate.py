"""Reports of a small random network: the same in any company, from one program, and explained."""

import jax
import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax import config as configs
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.explain.attention import make_explain
from mcsam_jax.inference.generate import ReportGenerator
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training.train_step import init_train_state

FIELDS = {"encoder.frozen": "true", "model.width": 32, "model.feedforward_width": 48, "model.num_heads": 4,
          "memory.num_heads": 4, "memory.num_slots": 40, "memory.top_k": 6, "memory.slot_width": 24,
          "model.num_memory_tokens": 3, "model.decoder_layers": 2, "tokenizer.max_length": 12, "decode.beam_size": 3,
          "decode.num_samples": 6}
V, P, C = 2, 9, 16
REPORTS = ["the heart is normal .", "no effusion or pneumothorax .", "lungs are clear . heart normal .", "small effusion ."]


class Network:
  """A network with random weights, and studies for it to see."""

  def __init__(self, batch_size, **fields):
    fields = FIELDS | {"decode.batch_size": batch_size} | {name.replace("__", "."): value for name, value in fields.items()}
    self.config = configs.load_config("phantom", [f"--config.{name}={value}" for name, value in fields.items()])
    self.tokenizer = WordTokenizer.train(REPORTS * 4, "iu_xray", 1, False)
    self.model = make_model(self.config, self.tokenizer.vocab_size, 3)
    self.batch_size = batch_size
    init = jax.jit(lambda batch: init_train_state(self.model, self.config, batch).variables)
    self.variables = init(next(self.batches(1)))
    self.variables["params"]["decoder"]["logits"]["kernel"] *= 8                # so that studies differ in their report

  def batches(self, count):
    """Yields batches as `eval_batches` does, the last one padded."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, V, P, C)).astype(np.float32)
    tokens = np.stack([self.tokenizer.encode_for_training(REPORTS[i % 4], self.config.tokenizer.max_length)
                       for i in range(300)])
    for start in range(0, count, self.batch_size):
      record = np.minimum(np.arange(start, start + self.batch_size), count - 1)
      yield {"features": features[record], "view_mask": np.stack([np.ones(len(record), bool), record % 3 > 0], 1),
             "view_ids": np.tile(np.int32([0, 1]), (len(record), 1)), "tokens": tokens[record],
             "labels": np.zeros((len(record), 14), np.float32), "record": record.astype(np.int32),
             "epoch": np.zeros(len(record), np.int32), "valid": np.arange(start, start + self.batch_size) < count}

  def writer(self, search):
    return ReportGenerator([self.model], self.config, self.tokenizer, make_mesh(self.config), search, REPORTS)

  def write(self, search, count):
    return self.writer(search)([self.variables], self.batches(count))


@pytest.mark.parametrize("search", ["beam", "mbr"])
def test_a_report_is_the_same_in_any_company(search):
  network = Network(8, decode__retrieval_weight=0.5)
  writer = network.writer(search)
  everyone = writer([network.variables], network.batches(300))
  assert [report.record for report in everyone] == list(range(300))
  assert len({report.text for report in everyone}) > 20
  for count in (1, 7, 8, 9):
    assert [report.text for report in writer([network.variables], network.batches(count))] == [
        report.text for report in everyone[:count]]
  assert writer._write._cache_size() == writer._prepare._cache_size() == 1      # one program for any number of studies
  by_threes = Network(3, decode__retrieval_weight=0.5).write(search, 9)
  assert [report.text for report in by_threes] == [report.text for report in everyone[:9]]


def test_an_explanation_adds_up_to_the_report():
  network = Network(8)
  written = network.write("beam", 8)
  batch = next(network.batches(8))
  length, tokenizer = network.config.tokenizer.max_length, network.tokenizer
  ids = np.stack([report.ids for report in written])
  explained = make_explain(network.model, network.config, tokenizer.eos_id)(network.variables, batch, ids)
  np.testing.assert_allclose(explained.log_probs.sum(-1), [report.log_prob for report in written], atol=1e-4)
  number = (ids != tokenizer.pad_id).sum(-1)
  np.testing.assert_allclose(explained.patches.sum(-1), np.arange(length) < number[:, None], atol=1e-5)
  absent = ~np.repeat(batch["view_mask"], P, axis=1)
  assert absent.any() and np.all(np.moveaxis(explained.patches, 1, 2)[absent] == 0)
  np.testing.assert_allclose(explained.slots.sum(-1), 1, rtol=1e-5)
  shown = batch | {"features": np.where(batch["view_mask"][..., None, None], batch["features"], np.nan)}
  again = make_explain(network.model, network.config, tokenizer.eos_id)(network.variables, shown, ids)
  np.testing.assert_allclose(again.slots, explained.slots, rtol=1e-5)              # absent views remind of nothing
