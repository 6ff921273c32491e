"""Why a small random network wrote what it wrote: words, maps, slots and neighbours, against what is known of them."""

import numpy as np
import pytest

from input_pipeline.tokenizer import SentencePieceTokenizer
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.explain import explanations
from mcsam_jax.explain.attention import make_explain
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.load import LoadedModel
from tests.mcsam_jax.inference.test_generate import Network, P, REPORTS

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Asked(Network):
  """A network, reports of random words as if it had written them, and the arguments that all of explanations.py takes."""

  def __init__(self, count, **fields):
    super().__init__(8, model__decoder_layers=1, model__use_alignment="false", **fields)
    rng, tokenizer = np.random.default_rng(0), self.tokenizer
    self.written = []
    for record in range(count):
      ids = np.full(self.config.tokenizer.max_length, tokenizer.pad_id, np.int32)
      length = 3 + record % (len(ids) - 3)
      ids[:length] = rng.integers(4, tokenizer.vocab_size, length)
      ids[length] = tokenizer.eos_id
      self.written.append(GeneratedReport(record, tokenizer.decode(ids), ids, 0.0))
    self.member = LoadedModel("here", self.model, self.variables, 0)
    self.mesh = make_mesh(self.config)

  def explain(self, count, train):
    return explanations.explain_reports(self.member, self.config, self.tokenizer, self.mesh, self.batches(count), self.written,
                               train)

  def profiles(self, reports, word_weights):
    return np.concatenate(list(explanations._report_profiles(self.member, self.config, self.tokenizer, self.mesh, reports,
                                                    word_weights)))


@pytest.fixture(scope="module")
def asked():
  return Asked(11)


def test_words_maps_and_slots_are_those_of_the_explanation(asked):
  found = asked.explain(11, REPORTS)                         # the second batch is filled up
  explain = make_explain(asked.model, asked.config, asked.tokenizer.eos_id)
  for number, batch in enumerate(asked.batches(11)):
    written = [asked.written[int(record)] for record in batch["record"]]
    known = explain(asked.variables, batch, np.stack([report.ids for report in written]))
    for row in np.flatnonzero(batch["valid"]):
      one = found[number * 8 + row]
      assert " ".join(one.words) == written[row].text
      np.testing.assert_allclose(one.log_probs, known.log_probs[row, :len(one.words)], atol=1e-5)
      views = batch["view_mask"][row]
      assert one.maps.shape == (len(one.words), views.sum(), P) and (one.maps.max((1, 2)) == 255).all()
      looks = np.asarray(known.patches[row, :len(one.words)]).reshape(len(one.words), 2, P)[:, views]
      np.testing.assert_allclose(one.maps, 255 * looks / looks.max((1, 2), keepdims=True), atol=0.51)
      slots, weights = zip(*one.slots)
      np.testing.assert_allclose(weights, np.sort(known.slots[row])[::-1][:len(weights)], rtol=1e-5)
      np.testing.assert_allclose(np.asarray(known.slots[row])[list(slots)], weights, rtol=1e-5)
      assert one.neighbours == sorted(one.neighbours, key=lambda near: -near[1])
      assert len({record for record, _ in one.neighbours}) == 3


@pytest.mark.parametrize("query", ["word", pytest.param("word_position", marks=pytest.mark.slow)])
def test_the_report_with_the_same_profile_is_the_nearest(asked, query):
  asked = asked if query == "word" else Asked(1, memory__query=query)
  rng = np.random.default_rng(0)
  words = asked.tokenizer.get_vocabulary()[4:]
  train = [" ".join(rng.choice(words, 8)) for _ in range(20)]
  train[7] = train[3]                                        # the same text: counts once, by its first record
  rare = explanations.rarity(asked.tokenizer, train[:7] + train[8:])
  profiles = asked.profiles(train, rare)
  np.testing.assert_allclose(profiles.sum(-1), 1, rtol=1e-5)
  near = explanations._neighbours(asked.member, asked.config, asked.tokenizer, asked.mesh,
                         profiles - profiles.mean(0) + 1, train)
  own = [records[0] for records in near]
  assert [record for record, _ in own] == [3 if number == 7 else number for number in range(20)]
  assert min(cosine for _, cosine in own) > 0.98             # the mean of 20 reports, one of them twice, is not of 19
  assert all(len({record for record, _ in records}) == 3 and 7 not in dict(records) for records in near)


def test_slots_are_described_by_the_words_that_they_answer(asked):
  slots = explanations.describe_slots(asked.member, asked.config, asked.tokenizer, None, asked.mesh)
  table = np.asarray(explanations._vocabulary_weights(asked.model, asked.config, asked.variables))
  words = asked.tokenizer.get_vocabulary()
  for slot, meaning in enumerate(slots):
    assert meaning.topic is None and not meaning.began and "." not in meaning.answers
    weights = [table[words.index(word), slot] for word in meaning.answers]
    assert weights == sorted(weights, reverse=True) and all(weights)
    others = [table[words.index(word), slot] for word in words[4:] if word not in (*meaning.answers, ".")]
    assert max([0, *others]) <= min([1, *weights])


def test_without_memory_nothing_was_recalled():
  asked = Asked(3, model__use_memory="false")
  found = asked.explain(3, REPORTS)
  assert all(one.words and not one.slots and not one.neighbours for one in found)
  assert explanations.describe_slots(asked.member, asked.config, asked.tokenizer, None, asked.mesh) == []


def test_pieces_of_a_word_are_put_together():
  tokenizer = SentencePieceTokenizer.train(REPORTS * 20, "iu_xray", 60)
  ids = np.array([*tokenizer.encode(REPORTS[1]), tokenizer.eos_id, tokenizer.pad_id], np.int32)
  log_probs, maps = -np.arange(1, len(ids) + 1, dtype=np.float32), np.zeros((len(ids), 1, 4), np.uint8)
  maps[np.arange(len(ids)), 0, np.arange(len(ids)) % 4] = 255
  one = explanations._by_words(tokenizer, ids, log_probs, maps)
  assert len(ids) - 2 > len(one.words)                       # some words have several pieces
  assert " ".join(one.words) == tokenizer.decode(ids) == "no effusion or pneumothorax ."
  assert one.log_probs.sum() == log_probs[:-2].sum()
  assert (one.maps.max((1, 2)) == 255).all()


def test_rare_words_count_more(asked):
  rare = explanations.rarity(asked.tokenizer, REPORTS)
  of = lambda word: rare[asked.tokenizer.get_vocabulary().index(word)]
  assert [of(word) for word in ("small", "normal", ".")] == pytest.approx([np.log(4), np.log(2), 0.01])
