"""The tf.data pipeline: prepared records -> batches (see batch.py).

`train_dataset` and `eval_dataset` return chains of these stages:

  positions       training steps that precede the batch, or first record of the evaluation batch
  choose_records  -> records of this host's rows of the batch, and their epochs
  read_records    -> serialized records, by random access to the ArrayRecord shards
  parse           -> JPEGs of all rows
  decode          -> pixels of all rows: JPEG decoding and resizing, in parallel
  read_fields     -> tokens, views and labels, from the split's token table (token_table.py)
  prefetch

With features of a frozen encoder or of its frozen stages, read_features takes the place of the stages from
read_records to decode.

The images of a batch are decoded and resized by one call of Python, with the function of `mcsam report`: OpenCV works
without the interpreter lock, and takes less time than TensorFlow's operations (docs/data.md). Everything runs on
`train.host_threads` threads, and batches are delivered in order, whatever thread made them.

Which records a training step takes depends only on the seed, the step, the batch size and the number of records
(shuffle.py), so a run that resumes at step k gets exactly the batches that an uninterrupted run gets. Evaluation yields
every record of a split once, in order, and pads the last batch. On several hosts `rows` selects the rows of the global
batch that this host reads.

`train_batches` and `eval_batches` iterate over the datasets. TensorFlow loses the type of an exception in a stage;
these two functions restore it, and name the record of a JPEG that can't be decoded.

Shapes: B rows of a batch on this host, V views, H = W = `data.image_size`, P patches per view, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import functools
import itertools
import re

from ml_collections import ConfigDict
import numpy as np
import tensorflow as tf

from input_pipeline import images, token_table
from input_pipeline.batch import Batch, batch_spec, Features, make_batch
from input_pipeline.shuffle import choose_versions, record_order
from input_pipeline.splits import Split
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.errors import UserError

ALL_ROWS = slice(None)
# AutoGraph, which rewrites Python control flow, would also swallow an exception that a signal handler raises meanwhile.
_as_is = tf.autograph.experimental.do_not_convert
READ_AHEAD = 2               # batches that are read, or finished, ahead of their use
_RAISED = re.compile(r"mcsam stage error (\d+)")

with contextlib.suppress(RuntimeError):      # the program has used TensorFlow before, and chosen its devices
  tf.config.set_visible_devices([], "GPU")   # GPUs belong to JAX; TensorFlow would take their memory


# From the position of a batch to its rows on this host: records int32 [B], epochs int32 [B], valid bool [B], False for
# padding.
ChooseRecords = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def train_dataset(split: Split, tokenizer: Tokenizer, config: ConfigDict, start_step: int, num_steps: int,
                  features: Features | None = None, rows: slice | np.ndarray = ALL_ROWS,
                  labels: np.ndarray | None = None) -> tf.data.Dataset:
  """Returns the batches of the `num_steps` training steps after the first `start_step`.

  Args:
    split: the records.
    tokenizer: encodes the reports.
    config: `seed`, `data`, `tokenizer.max_length`, `train.batch_size` and `train.host_threads` are read.
    start_step: number of completed steps; the first batch is that of step start_step + 1 in training's counting.
    num_steps: number of batches.
    features: float16 [len(split), V, P, C], used instead of images; may be a memory map. Of a list of versions, each
      epoch shows another one.
    rows: rows of the global batch that this host reads.
    labels: int8 [len(split), 14], used instead of the records' labels.

  Returns:
    Dictionaries of the arrays that `batch_spec` describes, for this host's rows.
  """
  positions = tf.data.Dataset.range(start_step, start_step + num_steps, name="steps")
  return _make_dataset(positions, _choose_for_step(split, config, rows), split, tokenizer, config, features, labels)


def eval_dataset(split: Split, tokenizer: Tokenizer, config: ConfigDict, batch_size: int,
                 features: np.ndarray | None = None, limit: int = 0,
                 rows: slice | np.ndarray = ALL_ROWS) -> tf.data.Dataset:
  """Returns each record of a split once, in order; the last batch is padded with record 0, for which `valid` is False.

  Args:
    split: the records.
    tokenizer: encodes the reports.
    config: `data`, `tokenizer.max_length` and `train.host_threads` are read.
    batch_size: studies per global batch.
    features: float16 [len(split), V, P, C], used instead of images; may be a memory map.
    limit: number of records to yield, from the first on; 0: all.
    rows: rows of the global batch that this host reads.

  Returns:
    Dictionaries of the arrays that `batch_spec` describes, for this host's rows.
  """
  num_records = min(limit or len(split), len(split))
  positions = tf.data.Dataset.range(0, num_records, batch_size, name="first_records")
  return _make_dataset(positions, _choose_in_order(num_records, batch_size, rows), split, tokenizer, config, features)


def train_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, start_step: int, num_steps: int,
                  features: Features | None = None, rows: slice | np.ndarray = ALL_ROWS,
                  labels: np.ndarray | None = None) -> Iterator[Batch]:
  """Yields the elements of `train_dataset`, which has the same arguments, as NumPy arrays.

  Raises:
    UserError: more records are corrupt than allowed.
    TimeoutError: a disk or bucket did not answer after several attempts.
  """
  dataset = train_dataset(split, tokenizer, config, start_step, num_steps, features, rows, labels)
  choose_records = _choose_for_step(split, config, rows)
  return _iterate(dataset, lambda number: _check_images(split, choose_records(start_step + number)[0], config))


def eval_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, batch_size: int,
                 features: np.ndarray | None = None, limit: int = 0,
                 rows: slice | np.ndarray = ALL_ROWS) -> Iterator[Batch]:
  """Yields the elements of `eval_dataset`, which has the same arguments, as NumPy arrays.

  Raises:
    UserError, TimeoutError: see `train_batches`.
  """
  dataset = eval_dataset(split, tokenizer, config, batch_size, features, limit, rows)
  choose_records = _choose_in_order(min(limit or len(split), len(split)), batch_size, rows)
  return _iterate(dataset, lambda number: _check_images(split, choose_records(number * batch_size)[0], config))


def image_batches(split: Split, config: ConfigDict, num_views: int, batch_size: int,
                  records: Sequence[int] | np.ndarray, first_slot: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the images of some records in order, without absent views; only the last batch may be shorter.

  Args:
    split: the records.
    config: `data.image_size` and `train.host_threads` are read.
    num_views: images per record, at most.
    batch_size: images per batch.
    records: records of the split.
    first_slot: images before this slot are skipped.

  Yields:
    (slots, pixels): int64 [M], num_views * (position of the image's record in `records`) + view; and uint8
    [M, H, W, 1].

  Raises:
    UserError, TimeoutError: see `train_batches`.
  """
  records, block = np.asarray(records), max(1, batch_size // num_views)

  def read_records(start: int) -> tuple[np.ndarray, np.ndarray]:
    serialized = split.read_serialized(records[start:start + block])
    slots = np.arange(start, start + len(serialized))[:, None] * num_views + np.arange(num_views)
    return slots, np.array(serialized, object)

  def parse(slots: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.reshape(slots, [-1]), _parse_jpegs(serialized, num_views)

  decode_jpegs = _make_decoder(config.data.image_size)

  dataset = (
      tf.data.Dataset.range(first_slot // num_views, len(records), block, name="first_records")
      .map(_python_stage(read_records, tf.TensorSpec([None, num_views], tf.int64), tf.TensorSpec([None], tf.string)),
           name="read_records")
      .map(_as_is(parse), name="parse")
      .unbatch(name="images")
      .filter(_as_is(lambda slot, jpeg: tf.logical_and(jpeg != b"", slot >= first_slot)), name="present_views")
      .batch(batch_size, name="batch")
      .map(_as_is(lambda slots, jpegs: (slots, decode_jpegs(jpegs))), config.train.host_threads, name="decode")
      .prefetch(READ_AHEAD, name="prefetch")
      .with_options(_make_options(config)))
  return _iterate(dataset, lambda number: _check_images(split, records[first_slot // num_views:], config))


def _choose_for_step(split: Split, config: ConfigDict, rows: slice | np.ndarray) -> ChooseRecords:
  """Returns a function from the number of a training step to its records."""
  seed, batch_size, num_records = config.seed, config.train.batch_size, len(split)

  def choose_records(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    records, epochs = (array[rows].astype(np.int32) for array in record_order(seed, step, batch_size, num_records))
    return records, epochs, np.ones(records.shape, bool)

  return choose_records


def _choose_in_order(num_records: int, batch_size: int, rows: slice | np.ndarray) -> ChooseRecords:
  """Returns a function from the first record of an evaluation batch to its records."""
  def choose_records(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    records = np.arange(start, start + batch_size, dtype=np.int32)[rows]
    valid = records < num_records
    return np.where(valid, records, 0), np.zeros_like(records), valid

  return choose_records


def _make_dataset(positions: tf.data.Dataset, choose_records: ChooseRecords, split: Split, tokenizer: Tokenizer,
                  config: ConfigDict, features: Features | None, labels: np.ndarray | None = None) -> tf.data.Dataset:
  """Returns the chain of stages from the positions of batches to batches."""
  num_rows, num_views = len(choose_records(0)[0]), config.data.num_views
  table = token_table.load_token_table(split, tokenizer)
  labels = table.labels if labels is None else labels
  versions = features if isinstance(features, list) else [] if features is None else [features]
  spec = batch_spec(config, num_rows, versions[0].shape[2:] if versions else None)
  input_name = "images" if features is None else "features"
  field_names = [name for name in spec if name != input_name]

  def read_fields(records: np.ndarray, epochs: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, ...]:
    rows_of_table = split.resolve(records)
    views = np.full((num_rows, num_views), -1)                    # -1: absent
    stored_views = table.views[rows_of_table, :num_views]         # [B, V or fewer]
    views[:, :stored_views.shape[1]] = stored_views
    fields = make_batch({}, views, table.make_tokens(rows_of_table, tokenizer, config.tokenizer.max_length),
                        labels=labels[rows_of_table], record=records, epoch=epochs, valid=valid)
    return tuple(fields[name] for name in field_names)

  def read_records(records: np.ndarray) -> np.ndarray:
    return np.array(split.read_serialized(records), object)

  def read_features(records: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    if len(versions) == 1:
      return np.asarray(versions[0][records])
    chosen = choose_versions(config.seed, records, epochs, len(versions), len(split))
    return np.stack([versions[version][record] for version, record in zip(chosen, records)])

  call_read_fields = _python_stage(read_fields, *(tf.TensorSpec(*spec[name]) for name in field_names))
  dataset = positions.map(_python_stage(choose_records, *(tf.TensorSpec(*spec[name])
                                                        for name in ("record", "epoch", "valid"))),
                        name="choose_records")
  if features is not None:
    call_read_features = _python_stage(read_features, tf.TensorSpec(*spec["features"]))
    dataset = dataset.map(_as_is(lambda *chosen: (call_read_features(*chosen[:2]), *chosen)), READ_AHEAD,
                          name="read_features")
  else:
    call_read_records = _python_stage(read_records, tf.TensorSpec([num_rows], tf.string))

    def parse(serialized: tf.Tensor, *chosen: tf.Tensor) -> tuple[tf.Tensor, ...]:
      return _parse_jpegs(serialized, num_views), *chosen

    decode_jpegs = _make_decoder(config.data.image_size)

    def decode(jpegs: tf.Tensor, *chosen: tf.Tensor) -> tuple[tf.Tensor, ...]:
      return tf.reshape(decode_jpegs(jpegs), spec["images"].shape), *chosen

    dataset = (dataset
               .map(_as_is(lambda *chosen: (call_read_records(chosen[0]), *chosen)), READ_AHEAD, name="read_records")
               .map(_as_is(parse), name="parse")
               .map(_as_is(decode), config.train.host_threads, name="decode"))

  def add_fields(inputs: tf.Tensor, *chosen: tf.Tensor) -> dict[str, tf.Tensor]:
    return {input_name: inputs, **dict(zip(field_names, call_read_fields(*chosen)))}

  # After the records have been read, which shows whether any of them has to be substituted.
  dataset = dataset.map(_as_is(add_fields), name="read_fields")
  return dataset.prefetch(READ_AHEAD, name="prefetch").with_options(_make_options(config))


def _make_options(config: ConfigDict) -> tf.data.Options:
  """Returns the options of all datasets: elements in order, threads of their own, no autotuning.

  The stages have fixed numbers of threads, so there is nothing to tune. TensorFlow's tuner would sometimes delay the
  end of a dataset by as long as it had run, up to a minute: iteration waits for the tuner's thread, which sleeps.
  """
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = False
  options.threading.private_threadpool_size = config.train.host_threads
  options.threading.max_intra_op_parallelism = 1                  # one thread per image
  return options


def _parse_jpegs(serialized: tf.Tensor, num_views: int) -> tf.Tensor:
  """Returns the first V JPEGs of each record, string [B * V], empty for absent views."""
  parsed = tf.io.parse_example(serialized, {"images": tf.io.RaggedFeature(tf.string)})
  padded = parsed["images"].to_tensor(b"", shape=(None, num_views))  # pyright: ignore[reportArgumentType]
  return tf.reshape(padded, [-1])


def _make_decoder(image_size: int) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns a function from JPEGs, string [M], to what the model sees, uint8 [M, H, W, 1]; an empty string is black."""
  def decode_jpegs(jpegs: np.ndarray) -> np.ndarray:
    pixels = np.zeros((len(jpegs), image_size, image_size, 1), np.uint8)
    for jpeg, out in zip(jpegs, pixels):
      if jpeg:
        images.decode_into(jpeg, out)
    return pixels

  return _python_stage(decode_jpegs, tf.TensorSpec([None, image_size, image_size, 1], tf.uint8))


_raised: dict[int, Exception] = {}         # exceptions of stages that no consumer has raised yet


def _python_stage(function: Callable, *specs: tf.TensorSpec) -> Callable:
  """Returns a TensorFlow function that calls a Python function of NumPy arrays, whose results have the given specs.

  An exception is kept in `_raised`; its key there is the message of the TensorFlow error, which `_iterate` translates.
  """
  @functools.wraps(function)
  def call(*arrays):
    try:
      return function(*arrays)
    except Exception as error:
      _raised[id(error)] = error
      raise RuntimeError(f"mcsam stage error {id(error)}") from error

  def call_from_graph(*tensors: tf.Tensor):
    results = tf.numpy_function(call, tensors, [spec.dtype for spec in specs], stateful=False)
    results = [tf.ensure_shape(result, spec.shape) for result, spec in zip(results, specs, strict=True)]
    return tuple(results) if len(specs) > 1 else results[0]

  return _as_is(call_from_graph)


def _iterate(dataset: tf.data.Dataset, check_images: Callable[[int], None]) -> Iterator:
  """Yields the elements of a dataset as NumPy arrays, and raises the exceptions of its stages.

  Elements are taken in a thread, so that signals are handled while the consumer waits.

  Args:
    check_images: function of the number of an element, called when its images can't be decoded. It raises an error that
      names the image.
  """
  pool = futures.ThreadPoolExecutor(1, "input_pipeline")
  elements, end = dataset.as_numpy_iterator(), object()
  try:
    pending = pool.submit(next, elements, end)
    for number in itertools.count():
      try:
        element = pending.result()
      except tf.errors.OpError as error:
        if match := _RAISED.search(str(error)):
          raised = _raised.pop(int(match[1]))
          if isinstance(raised, images.UndecodableJpeg):
            check_images(number)
          raise raised from None
        raise
      if element is end:
        return
      # Before the consumer works with this element: where all cores are busy, handing over to a thread takes long.
      pending = pool.submit(next, elements, end)
      yield element
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _check_images(split: Split, records: np.ndarray, config: ConfigDict) -> None:
  """Raises UserError for the first image of some records that can't be decoded."""
  for record in records:
    for view, jpeg in enumerate(split[int(record)]["images"][:config.data.num_views], 1):
      try:
        images.decode(jpeg, config.data.image_size)
      except images.UndecodableJpeg:
        raise UserError(f"image {view} of record {record} of split {split.name} in {split.directory} is not a JPEG "
                        "that can be decoded: delete that folder and run `mcsam prepare`") from None
