import functools
import json

import numpy as np
import pytest

from configs import default
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.initial_memory import load_initial_memory, save_initial_memory
from mcsam_jax.memory_init.make_initial_memory import make_initial_memory

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
def test_slots_have_unit_scale_and_topics_have_equal_numbers_of_slots(kind):
  memory = _make(kind=kind)
  assert memory.slots.shape == (24, 5) and memory.slots.dtype == np.float32
  np.testing.assert_allclose(np.sqrt((memory.slots**2).mean(1)), 1, rtol=1e-5)
  copies = np.bincount(memory.slot_topics)
  assert copies.max() - copies.min() <= 1 and len(copies) == len(memory.npmi) == len(memory.topic_words)


@pytest.mark.parametrize("kind", ["topics", "kmeans"])
def test_the_words_of_a_slot_belong_to_one_theme(kind):
  memory = _make(kind=kind)
  found = {frozenset(words[:4]) for words in memory.slot_words}
  assert found == {frozenset(theme.split()) for theme in THEMES}
  assert (np.diff(memory.slot_cosines, axis=1) <= 0).all()


def test_without_jitter_the_slots_of_a_topic_are_equal():
  memory = _make(kind="kmeans", jitter=0.0)
  assert (memory.slots == memory.slots[memory.slot_topics]).all()
  jittered = _make(kind="kmeans", jitter=0.2)
  length = np.linalg.norm(jittered.slots[0] - memory.slots[0]) / np.linalg.norm(memory.slots[0])
  assert 0.1 < length < 0.4


@pytest.mark.parametrize("kind", ["kmeans", "random"])
def test_the_seed_determines_the_slots(kind):
  again = _make.__wrapped__(3, kind=kind)
  assert (_make(3, kind=kind).slots == again.slots).all()
  assert (_make(3, kind=kind).slots != _make(4, kind=kind).slots).any()


def test_random_slots_need_no_words():
  memory = make_initial_memory(["one", "two"], _config(kind="random"), 0, log=lambda line: None)
  assert memory.slots.shape == (24, 5) and memory.slot_words == [[]] * 24


def test_saved_memory_is_loaded_and_topics_json_lists_its_topics(tmp_path):
  memory = _make(kind="kmeans")
  save_initial_memory(tmp_path / "memory_bank", memory)
  loaded = load_initial_memory(tmp_path / "memory_bank")
  for name in ("kind", "slot_words", "topic_words"):
    assert getattr(loaded, name) == getattr(memory, name)
  for name in ("slots", "slot_cosines", "slot_topics", "topic_cosines", "npmi"):
    np.testing.assert_array_equal(getattr(loaded, name), getattr(memory, name))
  topics_json = json.loads((tmp_path / "memory_bank/topics.json").read_text())
  assert topics_json["kind"] == "kmeans" and sum(topic["num_slots"] for topic in topics_json["topics"]) == 24
  first = topics_json["topics"][0]
  assert list(first["words"]) == memory.topic_words[first["topic"]]
  assert first["npmi"] == max(topic["npmi"] for topic in topics_json["topics"])


def test_missing_or_damaged_file_is_named(tmp_path):
  with pytest.raises(UserError, match="slots.npz not found.*mcsam init-memory"):
    load_initial_memory(tmp_path)
  save_initial_memory(tmp_path, _make(kind="random"))
  original = (tmp_path / "slots.npz").read_bytes()
  for damaged in (original[:len(original) // 2], b"", original[:200] + bytes(100) + original[300:]):
    (tmp_path / "slots.npz").write_bytes(damaged)
    with pytest.raises(UserError, match="slots.npz is damaged"):
      load_initial_memory(tmp_path)


@pytest.mark.parametrize("fields, message", [
    ({"kind": "topic"}, "memory_init.kind is 'topic'"),
    ({"num_topics": 25}, "memory_init.num_topics is 25.*memory.num_slots.*24"),
    ({"epsilon": 0.0}, "memory_init.epsilon is 0.0"),
    ({"jitter": -0.1}, "memory_init.jitter is -0.1"),
])
def test_invalid_fields_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    _make(**fields)


def test_reports_without_content_are_refused():
  with pytest.raises(UserError, match="0 content words.*20 training reports"):
    make_initial_memory(["the lungs are clear ."] * 20, _config(), 0, log=lambda line: None)
