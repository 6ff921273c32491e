"""Builds the records of a source, in shards: by processes of this machine, or by Apache Beam on many.

The work is cut into shards of SHARD_SIZE entries before an image is read, and a
shard depends on its own entries alone. Whoever writes one gives it another name
until it is whole, so a build that was stopped anywhere, in whatever way, goes on
with the shards that are missing: at most one a worker is written again, and the
bytes are those of an undisturbed build. All of it stands in a folder that ends
in ".unfinished" and gets its own name when nothing is missing, so that a part is
never taken for the whole.

  <version>.unfinished/plan/        entries of each shard, and the digest of them all
  <version>.unfinished/*.json       what a finished shard holds, left out, and could not read
  <version>/build.json              the same of all of them
  <version>/words.npz               how long findings and impression are, from which splits.py chooses
  <version>/faults.jsonl            files that could not be read, where the config allows any
"""

import collections
from collections.abc import Callable, Iterator
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shlex
import signal
import tempfile
import threading
import time

from array_record.python import array_record_module
from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import datasets
from input_pipeline.datasets import records
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UnreadableFile, UserError

SHARD_SIZE = 512               # entries: some 20 MB at 256 px, a minute of a worker that reads originals
SECONDS_A_LINE = 10            # between two lines of progress
SMALL = 256                    # entries; a set of no more is built by this process, a worker takes longer to start


@dataclasses.dataclass(frozen=True)
class Shard:
  """Shard `number` of the `count` of a split, whose first entry is `start` in the split's plan."""
  split: str
  number: int
  count: int
  start: int

  @property
  def name(self) -> str:
    return f"{self.split}-{self.number:05d}-of-{self.count:05d}"


def build(config: ConfigDict, log: Callable[[str], None] = print) -> None:
  """Builds the records that a config names, or what is missing of them.

  Raises:
    UserError: faults of the source, more unreadable files than `prepare.max_corrupt_records`, another build under way.
    OSError, RuntimeError: as the file system says it; shards that are whole stay.
  """
  builder = datasets.make_builder(config)
  final = epath.Path(builder.data_dir)
  plan = builder.plan()
  unfinished = final.parent / f"{final.name}.unfinished"
  with _alone(unfinished):
    if (final / "dataset_info.json").exists():          # of a build that has ended meanwhile
      return
    if final.exists() and "://" not in str(final):
      raise UserError(f"{final} is there without its dataset_info.json, so something has removed that: delete the "
                      "folder, and run the same command")
    log(f"Writing records to {final}")
    shards = _lay_out(plan, unfinished)
    waiting = [shard for shard in shards if not _is_done(unfinished, builder, shard)]
    if len(waiting) < len(shards):
      log(f"Going on: {len(shards) - len(waiting)} of {len(shards)} shards are there")
    progress = Progress(len(shards), len(waiting), log)
    faults = sum(len(_tally(unfinished, shard)["faults"]) for shard in shards if shard not in waiting)
    num_entries = sum(map(len, plan.entries.values()))
    with contextlib.closing(_write_all(config, unfinished, waiting, num_entries)) as written:   # ends workers at once
      for _, tally in written:
        progress.line(tally)
        faults += len(tally["faults"])
        if faults > config.prepare.max_corrupt_records:
          raise UserError(_say(tally["faults"][0], faults, config))
    tallies = {shard: _tally(unfinished, shard) for shard in shards}
    _finish(builder, plan, tallies, unfinished, final)


@contextlib.contextmanager
def _alone(unfinished: epath.Path) -> Iterator[None]:
  """Holds the folder against a second build; a lock outlives no process."""
  if "://" in str(unfinished):            # a bucket has no locks: whole shards are the same, whoever wrote them
    unfinished.mkdir(parents=True, exist_ok=True)
    yield
    return
  unfinished.parent.mkdir(parents=True, exist_ok=True)
  with open(unfinished.parent / f".{unfinished.name}.lock", "w") as lock:      # stays: who unlinks it lets two in
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"another `mcsam prepare` writes {unfinished}: wait for it, or end it") from error
    yield


def _lay_out(plan: records.BuildPlan, unfinished: epath.Path) -> list[Shard]:
  """Returns the shards of a plan, the entries of each in a file; of another plan nothing is kept."""
  entries = {split: [some[start:start + SHARD_SIZE] for start in range(0, len(some), SHARD_SIZE)]
             for split, some in plan.entries.items()}
  digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
  shards = [Shard(split, number, len(some), number * SHARD_SIZE)
            for split, some in entries.items() for number in range(len(some))]
  unfinished.mkdir(parents=True, exist_ok=True)
  mark = unfinished / "plan" / "digest"
  if not mark.exists() or mark.read_text() != digest:
    for path in unfinished.iterdir():
      path.rmtree() if path.is_dir() else path.unlink()
    for shard in shards:
      atomic_write(_plan_path(unfinished, shard), json.dumps(entries[shard.split][shard.number]))
    atomic_write(mark, digest)
  for path in unfinished.glob("*.part-*"):          # of processes that were ended
    path.unlink()
  return shards


def _write_all(config: ConfigDict, unfinished: epath.Path, shards: list[Shard],
               num_entries: int) -> Iterator[tuple[Shard, dict]]:
  """Writes shards and yields each with its tally, in whatever order they are finished."""
  if config.prepare.beam_options:
    yield from _by_beam(config, unfinished, shards)
    return
  workers = min(config.prepare.num_workers or os.cpu_count(), len(shards))
  if workers <= 1 or num_entries <= SMALL:
    builder = datasets.make_builder(config)
    for shard in shards:
      yield shard, write_shard(builder, unfinished, shard, config.prepare.max_corrupt_records)
    return
  # Processes are spawned, not forked: JAX and TensorFlow run threads.
  with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker,
                                              (config.to_json_best_effort(), str(unfinished))) as pool:
    pending = {pool.submit(_work, shard): shard for shard in shards}
    try:
      for done in concurrent.futures.as_completed(pending):
        yield pending[done], done.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError("a process that writes records was ended from outside, perhaps for its memory; run the same "
                      "command, which goes on, with fewer prepare.num_workers") from error
    finally:
      pool.shutdown(wait=True, cancel_futures=True)     # shards that are being written become whole


def _start_worker(config: str, unfinished: str) -> None:
  """Keeps what every shard needs, and ends this process with the one that started it, however that ends."""
  global _worker
  config = ConfigDict(json.loads(config))
  _worker = (datasets.make_builder(config), epath.Path(unfinished), config.prepare.max_corrupt_records)
  signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C is for the one that started it
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work(shard: Shard) -> dict:
  builder, unfinished, max_corrupt_records = _worker
  return write_shard(builder, unfinished, shard, max_corrupt_records)


def _by_beam(config: ConfigDict, unfinished: epath.Path, shards: list[Shard]) -> Iterator[tuple[Shard, dict]]:
  """Writes shards by a Beam pipeline, whose runner `prepare.beam_options` names; workers must see the same paths."""
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError("prepare.beam_options needs Apache Beam: pip install -e '.[beam]'") from error
  text, folder = config.to_json_best_effort(), str(unfinished)
  try:
    options = PipelineOptions(shlex.split(config.prepare.beam_options))
    with beam.Pipeline(options=options) as pipeline:
      _ = (pipeline | beam.Create([dataclasses.asdict(shard) for shard in shards]) | beam.Reshuffle()
           | beam.Map(write_shard_anywhere, text, folder))
  except (ValueError, SystemExit) as error:         # Beam's way to refuse options
    raise UserError(f"prepare.beam_options={config.prepare.beam_options} isn't accepted by Apache Beam "
                    f"({' '.join(str(error).split())})") from error
  for shard in shards:
    yield shard, _tally(unfinished, shard)


def write_shard_anywhere(shard: dict, config: str, unfinished: str) -> None:
  """Writes a shard on a machine that has nothing but this package and the paths."""
  config = ConfigDict(json.loads(config))
  builder = datasets.make_builder(config)
  shard = Shard(**shard)
  if not _is_done(epath.Path(unfinished), builder, shard):
    write_shard(builder, epath.Path(unfinished), shard, config.prepare.max_corrupt_records)


def write_shard(builder: records.RecordBuilder, unfinished: epath.Path, shard: Shard, max_corrupt_records: int) -> dict:
  """Writes one shard and returns its tally.

  The tally counts what was `kept` and `left_out` by reason, lists `faults`, and has the `bytes` of the records and
  the `words` of each: [findings, impression].

  With more than `max_corrupt_records` of its own nothing is written: the build will stop.
  """
  entries = json.loads(_plan_path(unfinished, shard).read_text())
  tally = {"kept": 0, "left_out": collections.Counter(), "faults": [], "bytes": 0, "words": []}

  def serialized() -> Iterator[bytes]:
    for position, entry in enumerate(entries, shard.start):
      try:
        record = builder.build_record(entry)
      except records.SkipRecord as reason:
        tally["left_out"][str(reason)] += 1
        continue
      except UnreadableFile as fault:
        tally["left_out"]["unreadable file"] += 1
        tally["faults"].append({"split": shard.split, "position": position, "record": builder.describe_entry(entry),
                                "file": fault.path, "reason": fault.reason, "sha256": fault.sha256})
        if len(tally["faults"]) > max_corrupt_records:
          return
        continue
      data = records.serialize(record)
      tally["kept"] += 1
      tally["bytes"] += len(data)
      tally["words"].append([records.count_words(record[section]) for section in ("findings", "impression")])
      yield data

  path = _record_path(unfinished, builder, shard)
  part = path.parent / f"{path.name}.part-{os.getpid()}"
  in_bucket = "://" in str(path)
  local = os.path.join(tempfile.mkdtemp(), path.name) if in_bucket else str(part)
  try:
    _write_records(local, serialized())
    atomic_write(_tally_path(unfinished, shard), json.dumps(tally))
    if len(tally["faults"]) <= max_corrupt_records:
      if in_bucket:
        epath.Path(local).copy(part, overwrite=True)
      part.replace(path)                            # from now on the shard is done
  finally:
    for leftover in {epath.Path(local), part}:
      leftover.unlink(missing_ok=True)
  return tally


def _write_records(path: str, serialized: Iterator[bytes]) -> None:
  """Writes an ArrayRecord file of one record a group, so that any can be read alone, through to the disk."""
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  try:
    for data in serialized:
      writer.write(data)
  finally:
    writer.close()
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def _is_done(unfinished: epath.Path, builder: tfds.core.DatasetBuilder, shard: Shard) -> bool:
  """Tells whether a shard is whole, and no file that it could not read has changed since."""
  if not _record_path(unfinished, builder, shard).exists() or not _tally_path(unfinished, shard).exists():
    return False
  faults = _tally(unfinished, shard)["faults"]
  return all(_sha256(epath.Path(fault["file"])) == fault["sha256"] for fault in faults)


def _sha256(path: epath.Path) -> str:
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError:
    return ""


def _finish(builder: records.RecordBuilder, plan: records.BuildPlan, tallies: dict[Shard, dict], unfinished: epath.Path,
            final: epath.Path) -> None:
  """Writes the metadata and gives the folder its name."""
  made, infos, faults, words = {}, [], [], {}
  for split in plan.entries:
    own = {shard: tally for shard, tally in tallies.items() if shard.split == split}
    left_out = collections.Counter(plan.skipped.get(split, {}))
    for tally in own.values():
      left_out.update(tally["left_out"])
      faults += tally["faults"]
    kept = [tally["kept"] for tally in own.values()]
    words[split] = np.array([row for tally in own.values() for row in tally["words"]], np.int32).reshape(-1, 2)
    made[split] = {"kept": sum(kept), "left_out": dict(sorted(left_out.items()))}
    if not sum(kept):
      reasons = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "the source has none"
      raise UserError(f"no study is left in split {split} ({reasons}); see the fields of `data` and the source")
    infos.append(tfds.core.SplitInfo(
        name=split, shard_lengths=kept, num_bytes=sum(tally["bytes"] for tally in own.values()),
        filename_template=_template(unfinished, builder, split)))
  lengths = io.BytesIO()
  np.savez_compressed(lengths, **words)
  atomic_write(unfinished / "words.npz", lengths.getvalue())
  if faults:
    plan.notes.append(f"{len(faults)} files could not be read: {final / 'faults.jsonl'}")
    atomic_write(unfinished / "faults.jsonl", "".join(json.dumps(fault) + "\n" for fault in faults))
  atomic_write(unfinished / "build.json", json.dumps({"splits": made, "notes": plan.notes}, indent=1) + "\n")
  builder.info.set_splits(tfds.core.splits.SplitDict(infos))
  builder.info.write_to_directory(unfinished)
  scaffold = [_tally_path(final, shard) for shard in tallies]
  if "://" not in str(final):
    unfinished.rename(final)
  else:                                             # in a bucket folders can't be renamed
    paths = [path for path in unfinished.iterdir() if not path.is_dir() and path.name not in map(_name, scaffold)]
    for path in sorted(paths, key=lambda path: path.name == "dataset_info.json"):      # which is looked for
      path.copy(final / path.name, overwrite=True)
    unfinished.rmtree()
  for path in scaffold:                             # of no use any more; a build that is stopped here is whole
    path.unlink(missing_ok=True)
  if (final / "plan").exists():
    (final / "plan").rmtree()


def _name(path: epath.Path) -> str:
  return path.name


def _template(folder: epath.Path, builder: tfds.core.DatasetBuilder, split: str) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=builder.name, split=split,
                                       filetype_suffix="array_record")


def _record_path(unfinished: epath.Path, builder: tfds.core.DatasetBuilder, shard: Shard) -> epath.Path:
  return _template(unfinished, builder, shard.split).sharded_filepath(shard_index=shard.number,
                                                                     num_shards=shard.count)


def _plan_path(unfinished: epath.Path, shard: Shard) -> epath.Path:
  return unfinished / "plan" / f"{shard.name}.json"


def _tally(unfinished: epath.Path, shard: Shard) -> dict:
  return json.loads(_tally_path(unfinished, shard).read_text())


def _tally_path(unfinished: epath.Path, shard: Shard) -> epath.Path:
  return unfinished / f"{shard.name}.json"


def _say(fault: dict, count: int, config: ConfigDict) -> str:
  """Returns a line about the first of `count` files that can't be read, without any name of a restricted set's."""
  limit = config.prepare.max_corrupt_records
  more = f"; {count} such are more than prepare.max_corrupt_records={limit}" if limit else ""
  if config.data.restricted and not config.prepare.show_ids:
    known = f", SHA-256 of the file {fault['sha256'][:16]}" if fault["sha256"] else ""
    return (f"record {fault['position']} of split {fault['split']} can't be read ({fault['reason']}{known}); "
            f"--show-ids names it, prepare.max_corrupt_records lets it be left out{more}")
  return (f"record {fault['record']}: {fault['file']} can't be read ({fault['reason']}); replace it, take the "
          f"record out, or let prepare.max_corrupt_records leave it out{more}")


class Progress:
  """How far the shards are, at what rate, and how long the rest will take."""

  def __init__(self, total: int, waiting: int, log: Callable[[str], None]):
    self.total, self.waiting, self.log = total, waiting, log
    self.written = self.studies = 0
    self.started = self.shown = 0.0           # when the first shard was done: before it workers start

  def line(self, tally: dict) -> None:
    """Counts a shard that is done, and shows a line every now and then."""
    now, left = time.monotonic(), self.waiting - self.written - 1
    if not self.written:
      self.started = self.shown = now
    else:
      self.studies += tally["kept"]
    self.written += 1
    if now - self.shown > SECONDS_A_LINE and left:
      seconds = now - self.started
      self.log(f"{self.total - left}/{self.total} shards  {self.studies / seconds:.1f} studies/s  "
                f"{seconds / (self.written - 1) * left / 60:.1f} min left")
      self.shown = now
