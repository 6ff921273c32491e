"""Explanations of a small random network, compared with values known in another way."""

import numpy as np
import pytest

from input_pipeline.tokenizer import SentencePieceTokenizer
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.explain.attention import make_attribution_fn
from mcsam_jax.explain.explanations import explain_reports, merge_tokens
from mcsam_jax.explain.neighbors import compute_idf, compute_report_profiles, find_neighbors
from mcsam_jax.explain.slots import compute_vocabulary_weights, describe_slots
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.load import LoadedModel
from tests.testing.random_network import NUM_PATCHES, RandomNetwork, REPORTS


class ExplainedNetwork(RandomNetwork):
  """A random network with reports of random words as if it had generated them."""

  def __init__(self, num_studies, **fields):
    super().__init__(8, model__decoder_layers=1, model__use_alignment="false", **fields)
    rng, tokenizer = np.random.default_rng(0), self.tokenizer
    self.num_studies, self.reports = num_studies, []
    for record in range(num_studies):
      ids = np.full(self.config.tokenizer.max_length, tokenizer.pad_id, np.int32)
      length = 3 + record % (len(ids) - 3)
      ids[:length] = rng.integers(4, tokenizer.vocab_size, length)
      ids[length] = tokenizer.eos_id
      self.reports.append(GeneratedReport(record, tokenizer.decode(ids), ids, 0.0))
    self.mesh = make_mesh(self.config)
    self.arguments = LoadedModel("workdir", self.model, self.variables, 0), self.config, self.tokenizer, self.mesh

  def explain(self, train_reports):
    return explain_reports(*self.arguments, self.make_batches(self.num_studies), self.reports, train_reports)

  def describe_slots(self):
    loaded, config, tokenizer, mesh = self.arguments
    return describe_slots(loaded, config, tokenizer, None, mesh)

  def find_neighbors(self, profiles, train_reports):
    return find_neighbors(*self.arguments, profiles, train_reports)

  def compute_profiles(self, reports, token_weights):
    return np.concatenate(list(compute_report_profiles(*self.arguments, reports, token_weights)))


@pytest.fixture(scope="module")
def network():
  return ExplainedNetwork(11)


def test_explanations_agree_with_the_attribution_maps(network):
  explanations = network.explain(REPORTS)                    # the second batch is padded
  attribute = make_attribution_fn(network.model, network.config, network.tokenizer.eos_id)
  for index, batch in enumerate(network.make_batches(11)):
    reports = [network.reports[int(record)] for record in batch["record"]]
    maps = attribute(network.variables, batch, np.stack([report.ids for report in reports]))
    slot_weights = np.asarray(maps.slots)
    for row in np.flatnonzero(batch["valid"]):
      explanation = explanations[index * 8 + row]
      num_words = len(explanation.words)
      assert " ".join(explanation.words) == reports[row].text
      np.testing.assert_allclose(explanation.log_probs, maps.log_probs[row, :num_words], atol=1e-5)
      view_mask = batch["view_mask"][row]
      assert explanation.maps.shape == (num_words, view_mask.sum(), NUM_PATCHES)
      assert (explanation.maps.max((1, 2)) == 255).all()
      patches = np.asarray(maps.patches[row, :num_words]).reshape(num_words, 2, NUM_PATCHES)[:, view_mask]
      np.testing.assert_allclose(explanation.maps, 255 * patches / patches.max((1, 2), keepdims=True), atol=0.51)
      slots, weights = zip(*explanation.slots)
      np.testing.assert_allclose(weights, np.sort(slot_weights[row])[::-1][:len(weights)], rtol=1e-5)
      np.testing.assert_allclose(slot_weights[row, list(slots)], weights, rtol=1e-5)
      assert explanation.neighbors == sorted(explanation.neighbors, key=lambda neighbor: -neighbor[1])
      assert len({record for record, _ in explanation.neighbors}) == 3


@pytest.mark.parametrize("query", ["word", pytest.param("word_position", marks=pytest.mark.slow)])
def test_nearest_report_is_the_one_with_the_same_profile(network, query):
  network = network if query == "word" else ExplainedNetwork(1, memory__query=query)
  rng = np.random.default_rng(0)
  words = network.tokenizer.get_vocabulary()[4:]
  train_reports = [" ".join(rng.choice(words, 8)) for _ in range(20)]
  train_reports[7] = train_reports[3]                        # the same text counts once, as its first record
  idf = compute_idf(network.tokenizer, train_reports[:7] + train_reports[8:])
  profiles = network.compute_profiles(train_reports, idf)
  np.testing.assert_allclose(profiles.sum(-1), 1, rtol=1e-5)
  neighbors = network.find_neighbors(profiles - profiles.mean(0) + 1, train_reports)
  nearest = [records[0] for records in neighbors]
  assert [record for record, _ in nearest] == [3 if study == 7 else study for study in range(20)]
  assert min(cosine for _, cosine in nearest) > 0.98         # not 1: the means of 20 and of 19 reports differ
  assert all(len({record for record, _ in records}) == 3 and 7 not in dict(records) for records in neighbors)


def test_slots_are_described_by_their_words_with_most_weight(network):
  slots = network.describe_slots()
  table = np.asarray(compute_vocabulary_weights(network.model, network.config, network.variables))
  words = network.tokenizer.get_vocabulary()
  for slot, description in enumerate(slots):
    assert description.topic is None and not description.topic_words and "." not in description.top_words
    weights = [table[words.index(word), slot] for word in description.top_words]
    assert weights == sorted(weights, reverse=True) and all(weights)
    others = [table[words.index(word), slot] for word in words[4:] if word not in (*description.top_words, ".")]
    assert max([0, *others]) <= min([1, *weights])


def test_without_memory_there_are_no_slots_and_no_neighbors():
  network = ExplainedNetwork(3, model__use_memory="false")
  explanations = network.explain(REPORTS)
  assert len(explanations) == 3
  assert all(explanation.words and not explanation.slots and not explanation.neighbors for explanation in explanations)
  assert network.describe_slots() == []


def test_tokens_of_a_word_are_merged():
  tokenizer = SentencePieceTokenizer.train(list(REPORTS) * 20, "iu_xray", 60)
  ids = np.array([*tokenizer.encode(REPORTS[1]), tokenizer.eos_id, tokenizer.pad_id], np.int32)
  log_probs, maps = -np.arange(1, len(ids) + 1, dtype=np.float32), np.zeros((len(ids), 1, 4), np.uint8)
  maps[np.arange(len(ids)), 0, np.arange(len(ids)) % 4] = 255
  explanation = merge_tokens(tokenizer, ids, log_probs, maps)
  assert len(ids) - 2 > len(explanation.words)               # some words have several tokens
  assert " ".join(explanation.words) == tokenizer.decode(ids) == "no effusion or pneumothorax ."
  assert explanation.log_probs.sum() == log_probs[:-2].sum()
  assert (explanation.maps.max((1, 2)) == 255).all()


def test_idf_of_known_words(network):
  idf = compute_idf(network.tokenizer, REPORTS)
  words = network.tokenizer.get_vocabulary()
  assert [idf[words.index(word)] for word in ("small", "normal", ".")] == pytest.approx([np.log(4), np.log(2), 0.01])
