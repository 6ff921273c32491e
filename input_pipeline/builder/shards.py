"""Shards of a build: their plan, their files, and how one shard is written.

A build is divided into shards of SHARD_SIZE entries before any image is read, and the bytes of a shard depend only on
its own entries. A shard is written under a temporary name and renamed when it is complete, so an interrupted build
loses at most one shard per worker.

Files of a shard in the folder of the build:
  plan/<shard>.json             its entries, from which it is written
  <shard>.json                  its statistics (ShardStats)
  <dataset>-<split>.array_record-<number>-of-<count>   its records
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
import re
import tempfile

from array_record.python import array_record_module
from etils import epath
import tensorflow_datasets as tfds

from input_pipeline.datasets import records
from input_pipeline.image_files.files import read_regular
from input_pipeline.image_files.limits import MAX_PIXELS
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UnreadableFile, UserError

# The files of an interrupted build: of shards and their plan, and of a build that was stopped just before its end.
_OWN_FILE = re.compile(r"(plan/)?\w+-\d{5}-of-\d{5}\.json|plan/digest|\w+-\w+\.array_record-\d{5}-of-\d{5}(\.part-.+)?|"
                       r"(words\.npz|corrupt_records\.jsonl|build\.json|dataset_info\.json|features\.json)|"
                       r"(plan/)?\..+\.unfinished")
_LEFTOVER = re.compile(r".+\.array_record-\d{5}-of-\d{5}\.part-\d+|\.(\w+-\d{5}-of-\d{5}\.json|digest)\..+\.unfinished")
SHARD_SIZE = 512               # entries: about 20 MB at 256 px, about one minute of a worker that reads DICOM originals


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard of a split.

  Attributes:
    split: name of the split.
    number: position of the shard among the `count` shards of its split.
    count: number of shards of the split.
    start: position of the first entry of the shard among all entries of the split.
  """
  split: str
  number: int
  count: int
  start: int

  @property
  def name(self) -> str:
    return f"{self.split}-{self.number:05d}-of-{self.count:05d}"


@dataclasses.dataclass
class ShardStats:
  """Statistics of one shard.

  Attributes:
    kept: number of records written.
    skipped: number of entries that gave no record, by reason.
    corrupt_records: one dictionary per source file that could not be read, with the keys split, position (of the
      entry in its split), record, file, reason and sha256.
    warnings: number of images about which something was odd, by warning.
    num_bytes: size of the serialized records.
    words: number of words of [findings, impression], one pair per record.
  """
  kept: int = 0
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)
  corrupt_records: list[dict] = dataclasses.field(default_factory=list)
  warnings: dict[str, int] = dataclasses.field(default_factory=dict)
  num_bytes: int = 0
  words: list[list[int]] = dataclasses.field(default_factory=list)

  def count_skipped(self, reason: str) -> None:
    self.skipped[reason] = self.skipped.get(reason, 0) + 1


def plan_shards(plan: records.BuildPlan, folder: epath.Path) -> list[Shard]:
  """Divides a plan into shards, writes the entries of each to `folder`, and returns the shards.

  Shards of the same plan that are already in the folder stay. If the folder holds another plan, it is emptied first.
  """
  entries = {split: [split_entries[start:start + SHARD_SIZE] for start in range(0, len(split_entries), SHARD_SIZE)]
             for split, split_entries in plan.entries.items()}
  digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
  shards = [Shard(split, number, len(shard_entries), number * SHARD_SIZE)
            for split, shard_entries in entries.items() for number in range(len(shard_entries))]
  folder.mkdir(parents=True, exist_ok=True)
  digest_path = folder / "plan" / "digest"
  if not digest_path.exists() or digest_path.read_bytes() != digest.encode():
    _check_only_own_files(folder)
    for path in folder.iterdir():
      path.rmtree() if path.is_dir() else path.unlink()
  for shard in shards:                              # those of an interrupted build may be missing or damaged
    content, path = json.dumps(entries[shard.split][shard.number]), _entries_path(folder, shard)
    if not path.exists() or path.read_bytes() != content.encode():
      atomic_write(path, content)
  atomic_write(digest_path, digest)
  remove_leftovers(folder)
  return shards


def remove_leftovers(folder: epath.Path) -> None:
  """Deletes what processes that were killed have left in the folder of a build: files that they hadn't finished."""
  for directory in (folder, folder / "plan"):
    for path in directory.iterdir():
      if _LEFTOVER.fullmatch(path.name):
        path.unlink(missing_ok=True)


def _check_only_own_files(folder: epath.Path) -> None:
  """Raises UserError if the folder of an interrupted build, which is going to be emptied, holds somebody's files."""
  names = [path.name for path in folder.iterdir() if path.name != "plan"]
  names += [f"plan/{path.name}" for path in (folder / "plan").iterdir()] if (folder / "plan").is_dir() else []
  others = [name for name in names if not _OWN_FILE.fullmatch(name)]
  if others:
    raise UserError(f"{folder} holds {printable(others[0])}, which `mcsam prepare` didn't write, and would be emptied: "
                    "move that away and run the same command again")


def write_shard(builder: records.RecordBuilder, folder: epath.Path, shard: Shard,
                max_corrupt_records: int) -> ShardStats:
  """Writes the records and the statistics of one shard.

  If the shard alone has more than `max_corrupt_records` corrupt records, its records are not written, because the
  whole build is going to stop.

  Returns:
    The statistics of the shard.
  """
  entries = json.loads(_entries_path(folder, shard).read_text())
  stats = ShardStats()
  builder.warnings.clear()

  def serialize_entries() -> Iterator[bytes]:
    for position, entry in enumerate(entries, shard.start):
      try:
        record = builder.build_record(entry)
      except records.SkipRecord as reason:
        stats.count_skipped(str(reason))
        continue
      except UnreadableFile as error:
        stats.count_skipped("unreadable file")
        stats.corrupt_records.append({
            "split": shard.split, "position": position, "record": builder.describe_entry(entry), "file": error.path,
            "reason": error.reason, "sha256": error.sha256})
        if len(stats.corrupt_records) > max_corrupt_records:
          return
        continue
      data = records.serialize(record)
      stats.kept += 1
      stats.num_bytes += len(data)
      stats.words.append([records.count_words(record[section]) for section in ("findings", "impression")])
      yield data

  path = _record_path(folder, builder, shard)
  part = path.parent / f"{path.name}.part-{os.getpid()}"
  in_bucket = "://" in str(path)                    # ArrayRecord writes only local files
  local = os.path.join(tempfile.mkdtemp(), path.name) if in_bucket else str(part)
  try:
    _write_array_record(local, serialize_entries())
    stats.warnings = dict(sorted(builder.warnings.items()))
    atomic_write(stats_path(folder, shard), json.dumps(dataclasses.asdict(stats)))
    if len(stats.corrupt_records) <= max_corrupt_records:
      if in_bucket:
        epath.Path(local).copy(part, overwrite=True)
      part.replace(path)                            # from here on the shard is finished
  finally:
    for leftover in {epath.Path(local), part}:
      leftover.unlink(missing_ok=True)
  return stats


def is_finished(folder: epath.Path, builder: tfds.core.DatasetBuilder, shard: Shard) -> bool:
  """Returns whether a shard is complete and none of its unreadable source files has changed since it was written."""
  if not _record_path(folder, builder, shard).exists():
    return False
  try:
    stats = read_stats(folder, shard)
  except (FileNotFoundError, ValueError, TypeError):      # missing, or not written by this version
    return False
  return all(_hash_file(epath.Path(record["file"])) == record["sha256"] for record in stats.corrupt_records)


def read_stats(folder: epath.Path, shard: Shard) -> ShardStats:
  """Returns the statistics that `write_shard` wrote for a shard."""
  return ShardStats(**json.loads(stats_path(folder, shard).read_text()))


def stats_path(folder: epath.Path, shard: Shard) -> epath.Path:
  """Returns the path of the statistics of a shard."""
  return folder / f"{shard.name}.json"


def make_file_template(folder: epath.Path, builder: tfds.core.DatasetBuilder,
                       split: str) -> tfds.core.ShardedFileTemplate:
  """Returns the TFDS template of the names of a split's record files."""
  return tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=builder.name, split=split,
                                       filetype_suffix="array_record")


def _record_path(folder: epath.Path, builder: tfds.core.DatasetBuilder, shard: Shard) -> epath.Path:
  template = make_file_template(folder, builder, shard.split)
  return template.sharded_filepath(shard_index=shard.number, num_shards=shard.count)


def _entries_path(folder: epath.Path, shard: Shard) -> epath.Path:
  return folder / "plan" / f"{shard.name}.json"


def _write_array_record(path: str, serialized: Iterator[bytes]) -> None:
  """Writes an ArrayRecord file and syncs it to disk; groups of one record make each record readable by itself."""
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  try:
    for data in serialized:
      writer.write(data)
  finally:
    writer.close()
  with open(path, "rb") as file:
    os.fsync(file.fileno())


def _hash_file(path: epath.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal, "" if it can't be read, or is too large to be an image."""
  try:
    return hashlib.sha256(read_regular(path, MAX_PIXELS)).hexdigest()
  except UnreadableFile:
    return ""
