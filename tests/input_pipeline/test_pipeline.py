"""Batches: what they contain, that they resume, and that evaluation yields each record once."""

import functools
import hashlib
import io
import json
import signal
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from input_pipeline import images, pipeline, shuffle
from input_pipeline.batch import batch_spec, empty_batch, make_batch
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.splits import open_split
from mcsam_jax.errors import UserError
from tests.testing.fake_split import FakeSplit
from tests.testing.tiny import make_config

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


def test_each_epoch_shows_another_version_on_all_hosts_and_after_a_restart(prepared, train, tokenizer):
  rng = np.random.default_rng(0)
  versions = [rng.random((NUM_TRAIN, 2, 5, 3), np.float32).astype(np.float16) for _ in range(3)]
  run = functools.partial(pipeline.train_batches, train, tokenizer, prepared, features=versions)
  batches = list(run(0, 9))
  for batch in batches:
    chosen = shuffle.choose_versions(prepared.seed, batch["record"], batch["epoch"], 3, NUM_TRAIN)
    expected = [versions[version][record] for version, record in zip(chosen, batch["record"])]
    np.testing.assert_array_equal(batch["features"], expected)
  halves = [list(run(4, 5, rows=rows)) for rows in (slice(0, 2), slice(2, 4))]
  for batch, *parts in zip(batches[4:], *halves, strict=True):
    assert_equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


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


@pytest.mark.parametrize("hosts, threads, restart",
                         [(1, 1, 0), (1, 8, 73), (2, 1, 73), (2, 8, 0), (4, 1, 0), (4, 8, 73)])
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


def encode_jpeg(pixels, **options):
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", **options)
  return buffer.getvalue()


def list_images(jpegs, image_size, num_views=1, batch_size=5, first_slot=0):
  """Returns {slot: pixels} of the images of a split that holds the given JPEGs per record."""
  config = make_config()
  config.data.image_size = image_size
  batches = list(pipeline.image_batches(FakeSplit(jpegs), config, num_views, batch_size, range(len(jpegs)), first_slot))
  assert all(len(slots) == batch_size for slots, _ in batches[:-1])
  return {int(slot): image for slots, pixels in batches for slot, image in zip(slots, pixels, strict=True)}


@pytest.mark.parametrize("image_size", [16, 48, 224])
def test_pixels_agree_with_tensorflows_decoder_and_pillows(image_size):
  rng, jpegs = np.random.default_rng(0), []
  for height, width in ((1, 1), (15, 300), (48, 48), (97, 96), (224, 224), (256, 311), (700, 450), (33, 500)):
    for options in ({"quality": 95}, {"quality": 40, "progressive": True}, {"quality": 75, "optimize": True}):
      noise = rng.integers(0, 256, (height, width), np.uint8)
      smooth = (np.add.outer(np.arange(height) * 3, np.arange(width)) % 256).astype(np.uint8)
      jpegs += [[encode_jpeg(noise, **options)], [encode_jpeg(smooth, **options)]]
  seen = list_images(jpegs, image_size)
  assert list(seen) == list(range(len(jpegs)))
  for slot, (jpeg,) in enumerate(jpegs):
    by_tensorflow = tf.io.decode_jpeg(jpeg, channels=1, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(by_tensorflow[..., 0], np.asarray(PIL.Image.open(io.BytesIO(jpeg))), str(slot))
    expected = images.resize(by_tensorflow, np.empty((image_size, image_size, 1), np.uint8))
    np.testing.assert_array_equal(seen[slot], expected, err_msg=str(slot))


def test_images_have_the_slots_of_their_views_and_absent_views_have_none():
  rng = np.random.default_rng(0)
  jpegs = [[encode_jpeg(rng.integers(0, 256, (20, 20), np.uint8)) for _ in range(count)] for count in (1, 0, 3, 2)]
  expected = {record * 2 + view: images.decode(jpeg, 16)
              for record, views in enumerate(jpegs) for view, jpeg in enumerate(views[:2])}
  for first_slot in range(8):
    seen = list_images(jpegs, 16, num_views=2, batch_size=2, first_slot=first_slot)
    assert list(seen) == [slot for slot in expected if slot >= first_slot]
    assert all((seen[slot] == expected[slot]).all() for slot in seen)


def test_an_image_that_is_no_jpeg_is_named():
  good = encode_jpeg(np.zeros((20, 20), np.uint8))
  for damaged in (b"no JPEG", good[:len(good) // 2]):
    with pytest.raises(UserError, match="image 2 of record 1 of split val in memory .* `mcsam prepare`"):
      list_images([[good, good], [good, damaged]], 16, num_views=2)


def test_the_exception_of_a_stage_reaches_the_consumer(prepared, train, tokenizer, monkeypatch):
  def unreachable(indices):
    raise TimeoutError("record 3 can't be read now")

  monkeypatch.setattr(train, "read_serialized", unreachable)
  with pytest.raises(TimeoutError, match="^record 3 can't be read now$"):
    next(pipeline.train_batches(train, tokenizer, prepared, 0, 2))


def test_a_signal_is_handled_while_a_slow_disk_is_awaited(prepared, train, tokenizer, monkeypatch):
  read = train.read_serialized

  def slow(indices):
    time.sleep(2)
    return read(indices)

  def interrupt(number, frame):
    raise InterruptedError

  monkeypatch.setattr(train, "read_serialized", slow)
  batches = pipeline.train_batches(train, tokenizer, prepared, 0, 2)
  before = signal.signal(signal.SIGALRM, interrupt)
  try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    started = time.monotonic()
    with pytest.raises(InterruptedError):
      next(batches)
    assert time.monotonic() - started < 1.5
  finally:
    signal.signal(signal.SIGALRM, before)


def test_datasets_have_named_stages_and_keep_their_order_and_threads(prepared, train, tokenizer):
  dataset = pipeline.train_dataset(train, tokenizer, prepared, 0, 3)
  assert isinstance(dataset, tf.data.Dataset)
  options = dataset.options()
  assert options.deterministic and not options.autotune.enabled
  assert options.threading.private_threadpool_size == prepared.train.host_threads
  assert {name: (spec.shape, spec.dtype) for name, spec in dataset.element_spec.items()} == {
      name: (tf.TensorShape(spec.shape), tf.as_dtype(spec.dtype)) for name, spec in batch_spec(prepared, 4).items()}
  assert not tf.config.get_visible_devices("GPU")
