"""Batches: what they contain, that they resume, and that evaluation yields each record once."""

import functools
import hashlib
import json

import numpy as np
import pytest

from input_pipeline import images, pipeline, shuffle
from input_pipeline.batch import batch_spec, empty_batch, make_batch
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.splits import open_split

NUM_TRAIN = 11


@pytest.fixture(scope="module")
def train(prepared):
  return open_split(prepared, "train")


@pytest.fixture(scope="module")
def tokenizer(prepared):
  return load_or_build_tokenizer(prepared)


def assert_equal(batch, other):
  assert batch.keys() == other.keys()
  for name in batch:
    np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def read_records(split, tokenizer, config, records, features=None):
  """Returns the evaluation batch that consists of the given records."""
  batch, = pipeline.eval_batches(split, tokenizer, config, NUM_TRAIN, features, rows=np.array(records))
  return batch


def test_batch_by_hand(prepared, train, tokenizer):
  batch = read_records(train, tokenizer, prepared, [0, 3])
  shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
  assert shapes == {"images": ((2, 2, 16, 16, 1), "uint8"), "view_mask": ((2, 2), "bool"),
                    "view_ids": ((2, 2), "int32"), "tokens": ((2, 8), "int32"), "labels": ((2, 14), "int8"),
                    "record": ((2,), "int32"), "epoch": ((2,), "int32"), "valid": ((2,), "bool")}
  assert batch["view_mask"].tolist() == [[True, False], [True, True]]           # record 0 has one view
  assert batch["view_ids"].tolist() == [[2, 0], [0, 1]]                         # other; frontal, lateral
  assert not batch["images"][0, 1].any()
  np.testing.assert_array_equal(batch["images"][1, 1], images.decode(train[3]["images"][1], 16))
  assert tokenizer.decode(batch["tokens"][1]) == "the lungs are clear . size"   # 7 tokens with eos
  assert batch["record"].tolist() == [0, 3] and not batch["epoch"].any() and batch["valid"].all()


def test_spec_and_empty_batch_have_the_shapes_of_batches_that_are_read(prepared, train, tokenizer):
  features = np.zeros((NUM_TRAIN, 2, 5, 7), np.float16)
  for stored, feature_shape in ((None, None), (features, (5, 7))):
    batch = read_records(train, tokenizer, prepared, [0, 3, 4], stored)
    spec = batch_spec(prepared, 3, feature_shape)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == spec
    empty = empty_batch(prepared, 3, feature_shape)
    assert {name: (value.shape, value.dtype) for name, value in empty.items()} == spec
    assert empty["view_mask"].all() and empty["valid"].all()


def test_batch_of_parts_fills_in_what_is_not_given():
  pixels, tokens = np.zeros((2, 3, 4, 4, 1), np.uint8), np.zeros((2, 5), np.int32)
  batch = make_batch({"images": pixels}, np.array([[0, 1, -1], [2, -1, -1]]), tokens, record=np.array([7, 9]))
  assert batch["view_mask"].tolist() == [[True, True, False], [True, False, False]]
  assert batch["view_ids"].tolist() == [[0, 1, 0], [2, 0, 0]] and batch["record"].tolist() == [7, 9]
  assert batch["labels"].shape == (2, 14) and not batch["labels"].any()
  assert not batch["epoch"].any() and batch["valid"].all()


def test_config_may_use_fewer_views_than_stored(prepared, train, tokenizer):
  config = prepared.copy_and_resolve_references()
  config.data.num_views = 1
  batch = read_records(train, tokenizer, config, [3])
  assert batch["images"].shape == (1, 1, 16, 16, 1) and batch["view_mask"].tolist() == [[True]]


def test_training_follows_the_record_order_and_resumes(prepared, train, tokenizer):
  batches = list(pipeline.train_batches(train, tokenizer, prepared, 0, 7))
  for step, batch in enumerate(batches):
    records, epochs = shuffle.record_order(prepared.seed, step, 4, NUM_TRAIN)
    expected = read_records(train, tokenizer, prepared, records) | {"epoch": epochs}
    assert_equal(batch, expected)
  for batch, resumed in zip(batches[5:], pipeline.train_batches(train, tokenizer, prepared, 5, 2), strict=True):
    assert_equal(batch, resumed)


def test_hosts_feed_slices_of_the_global_batch(prepared, train, tokenizer):
  global_batches, *parts = [list(pipeline.train_batches(train, tokenizer, prepared, 2, 3, rows=rows))
                   for rows in (slice(None), slice(0, 2), slice(2, 4))]
  for batch, *halves in zip(global_batches, *parts, strict=True):
    assert_equal(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})


def test_features_replace_images(prepared, train, tokenizer):
  features = np.random.default_rng(0).random((NUM_TRAIN, 2, 5, 3), np.float32).astype(np.float16)
  batches = pipeline.train_batches(train, tokenizer, prepared, 0, 3, features=features)
  batches_with_images = pipeline.train_batches(train, tokenizer, prepared, 0, 3)
  for batch, with_images in zip(batches, batches_with_images, strict=True):
    np.testing.assert_array_equal(batch.pop("features"), features[batch["record"]])
    del with_images["images"]
    assert_equal(batch, with_images)


@pytest.mark.parametrize("batch_size,limit,num_records",
                         [(4, 0, 11), (11, 0, 11), (64, 0, 11), (4, 6, 6), (4, 99, 11)])
def test_evaluation_covers_each_record_once(prepared, train, tokenizer, batch_size, limit, num_records):
  batches = list(pipeline.eval_batches(train, tokenizer, prepared, batch_size, limit=limit))
  records = np.concatenate([batch["record"][batch["valid"]] for batch in batches])
  assert records.tolist() == list(range(num_records)) and len(batches) == -(-num_records // batch_size)
  assert all(batch["images"].shape[0] == batch_size for batch in batches)
  assert not np.concatenate([batch["record"][~batch["valid"]] for batch in batches]).any()


def hash_study_ids(split, batches):
  """Returns a digest of the study ids of some batches."""
  ids = [[split.metadata[record]["study_id"] for record in batch["record"]] for batch in batches]
  return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("restart", [0, 73])
def test_studies_of_200_steps_do_not_depend_on_hosts_threads_and_restarts(prepared, train, tokenizer, hosts, threads,
                                                                          restart):
  config = prepared.copy_and_resolve_references()
  config.train.host_threads = threads
  parts = []
  for host in range(hosts):
    rows = slice(host * 4 // hosts, (host + 1) * 4 // hosts)
    run = functools.partial(pipeline.train_batches, train, tokenizer, config, rows=rows)
    parts.append([*run(0, restart), *run(restart, 200 - restart)])
  batches = [{"record": np.concatenate([part["record"] for part in step])} for step in zip(*parts, strict=True)]
  expected = [{"record": shuffle.record_order(prepared.seed, step, 4, NUM_TRAIN)[0]} for step in range(200)]
  assert hash_study_ids(train, batches) == hash_study_ids(train, expected)
  indices = np.concatenate([batch["record"] for batch in batches])
  epochs = indices[:800 // NUM_TRAIN * NUM_TRAIN].reshape(-1, NUM_TRAIN)
  assert (np.sort(epochs) == np.arange(NUM_TRAIN)).all()                  # each study once per epoch
  assert len(np.unique(epochs, axis=0)) == len(epochs)                    # no two epochs in the same order


def test_late_step_reads_no_more_records_than_an_early_one(prepared, train, tokenizer, monkeypatch):
  num_read, read = [], train.read_serialized
  monkeypatch.setattr(train, "read_serialized", lambda indices: num_read.append(len(indices)) or read(indices))
  for step in (0, 10**6):
    list(pipeline.train_batches(train, tokenizer, prepared, step, 2))
  assert num_read == [4, 4] * 2
