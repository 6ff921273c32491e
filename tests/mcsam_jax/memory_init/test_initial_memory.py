import functools
import json

import numpy as np
import pytest

from configs import default
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.initial_memory import load_initial_memory, make_initial_memory, save_initial_memory

THEMES = ("pacemaker lead tip ventricle", "granuloma calcified nodule benign",
          "effusion costophrenic blunting small", "scoliosis spine degenerative curvature",
          "sternotomy wires cabg clips")


def _reports():
  rng = np.random.default_rng(0)
  return [" ".join(rng.permutation(THEMES[i % 5].split())) + " ." for i in range(60)]


def _config(**fields):
  config = default.get_config()
  config.memory.update(num_slots=24, slot_width=5)
  config.memory_init.update(num_topics=5, steps=60, batch_size=32, jitter=0.05)
  config.memory_init.update(fields)
  return config


@functools.cache
def _make(seed=0, **fields):
  return make_initial_memory(_reports(), _config(**fields), seed, log=lambda line: None)


@pytest.mark.parametrize("kind", ["topics", "kmeans", "random"])
def test_slots_have_one_scale_and_share_the_topics_evenly(kind):
  bank = _make(kind=kind)
  assert bank.slots.shape == (24, 5) and bank.slots.dtype == np.float32
  np.testing.assert_allclose(np.sqrt((bank.slots**2).mean(1)), 1, rtol=1e-5)
  copies = np.bincount(bank.slot_topics)
  assert copies.max() - copies.min() <= 1 and len(copies) == len(bank.npmi) == len(bank.topic_words)


@pytest.mark.parametrize("kind", ["topics", "kmeans"])
def test_a_slot_is_described_by_the_words_of_one_theme(kind):
  bank = _make(kind=kind)
  found = {frozenset(words[:4]) for words in bank.slot_words}
  assert found == {frozenset(theme.split()) for theme in THEMES}
  assert (np.diff(bank.slot_cosines, axis=1) <= 0).all()


def test_without_jitter_the_copies_of_a_topic_are_equal():
  bank = _make(kind="kmeans", jitter=0.0)
  assert (bank.slots == bank.slots[bank.slot_topics]).all()
  jittered = _make(kind="kmeans", jitter=0.2)
  length = np.linalg.norm(jittered.slots[0] - bank.slots[0]) / np.linalg.norm(bank.slots[0])
  assert 0.1 < length < 0.4


@pytest.mark.parametrize("kind", ["kmeans", "random"])
def test_the_seed_decides(kind):
  again = _make.__wrapped__(3, kind=kind)
  assert (_make(3, kind=kind).slots == again.slots).all()
  assert (_make(3, kind=kind).slots != _make(4, kind=kind).slots).any()


def test_noise_needs_no_words():
  bank = make_initial_memory(["one", "two"], _config(kind="random"), 0, log=lambda line: None)
  assert bank.slots.shape == (24, 5) and bank.slot_words == [[]] * 24


def test_a_saved_bank_comes_back_and_a_person_can_read_it(tmp_path):
  bank = _make(kind="kmeans")
  save_initial_memory(tmp_path / "memory_bank", bank)
  loaded = load_initial_memory(tmp_path / "memory_bank")
  for name in ("kind", "slot_words", "topic_words"):
    assert getattr(loaded, name) == getattr(bank, name)
  for name in ("slots", "slot_cosines", "topic_of_slot", "topic_cosines", "npmi"):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(bank, name))
  readable = json.loads((tmp_path / "memory_bank/topics.json").read_text())
  assert readable["kind"] == "kmeans" and sum(topic["slots"] for topic in readable["topics"]) == 24
  first = readable["topics"][0]
  assert list(first["words"]) == bank.topic_words[first["topic"]]
  assert first["npmi"] == max(topic["npmi"] for topic in readable["topics"])


def test_a_missing_or_damaged_bank_is_named(tmp_path):
  with pytest.raises(UserError, match="slots.npz not found: run `mcsam init-memory`"):
    load_initial_memory(tmp_path)
  save_initial_memory(tmp_path, _make(kind="random"))
  whole = (tmp_path / "slots.npz").read_bytes()
  for damaged in (whole[:len(whole) // 2], b"", whole[:200] + bytes(100) + whole[300:]):
    (tmp_path / "slots.npz").write_bytes(damaged)
    with pytest.raises(UserError, match="slots.npz is damaged"):
      load_initial_memory(tmp_path)


@pytest.mark.parametrize("fields, message", [
    ({"kind": "topic"}, "memory_init.kind is 'topic'"),
    ({"num_topics": 25}, "memory_init.num_topics is 25, more than memory.num_slots, 24"),
    ({"epsilon": 0.0}, "memory_init.epsilon is 0.0"),
    ({"jitter": -0.1}, "memory_init.jitter is -0.1"),
])
def test_fields_that_cannot_be_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    _make(**fields)


def test_reports_without_content_are_refused():
  with pytest.raises(UserError, match="20 training reports leave 0 content words"):
    make_initial_memory(["the lungs are clear ."] * 20, _config(), 0, log=lambda line: None)
