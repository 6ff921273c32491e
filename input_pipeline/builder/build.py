"""Builds the sharded records of a data set.

An interrupted build continues with the shards that are missing, and its result has the same bytes as an uninterrupted
one. Until nothing is missing everything is in a folder whose name ends in ".unfinished", so an incomplete data set is
never taken for a complete one.

  <version>.unfinished/plan/        entries of each shard, and a digest of all of them
  <version>.unfinished/*.json       statistics of each finished shard
  <version>/build.json              number of records kept and skipped in each split, and notes of the source
  <version>/words.npz               number of words of findings and impression, by which splits.py selects records
  <version>/corrupt_records.jsonl   source files that could not be read, if the config allows any
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import io
import json

from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import datasets
from input_pipeline.builder.shards import (
    is_finished,
    make_file_template,
    plan_shards,
    read_stats,
    remove_leftovers,
    Shard,
    ShardStats,
    stats_path,
)
from input_pipeline.builder.workers import write_shards
from input_pipeline.datasets import records
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.files.lock import acquire_lock
from mcsam_jax.progress import ProgressLog


def build(config: ConfigDict, log: Callable[[str], None] = print) -> None:
  """Builds the records that a config describes, or those that are missing from an interrupted build.

  Raises:
    UserError: the source is invalid, more than `prepare.max_corrupt_records` source files can't be read, or another
      build is running.
    OSError, RuntimeError: from the file system; finished shards stay.
  """
  builder = datasets.make_builder(config)
  final = epath.Path(builder.data_dir)
  plan = builder.plan()
  folder = final.parent / f"{final.name}.unfinished"
  with _lock(folder):
    if (final / "dataset_info.json").exists():          # another build has finished in the meantime
      return
    if final.exists() and "://" not in str(final):
      raise UserError(f"{final} has no dataset_info.json, which was removed after the build: delete the folder and run "
                      "the same command again")
    log(f"Writing records to {final}")
    shards = plan_shards(plan, folder)
    missing = [shard for shard in shards if not is_finished(folder, builder, shard)]
    if len(missing) < len(shards):
      log(f"Resuming: {len(shards) - len(missing)} of {len(shards)} shards are finished")
    num_corrupt = sum(len(read_stats(folder, shard).corrupt_records) for shard in shards if shard not in missing)
    num_entries = sum(map(len, plan.entries.values()))
    num_finished, num_studies, progress = len(shards) - len(missing), 0, None
    with contextlib.closing(write_shards(config, folder, missing, num_entries)) as written:   # stops workers on errors
      for _, stats in written:
        num_finished += 1
        if progress is None:          # measured from the first shard on, as workers take long to start
          progress = ProgressLog(log, "", len(shards), "shards", rate_unit="studies", done=num_finished)
        else:
          num_studies += stats.kept
          progress.update(num_finished, num_studies)
        num_corrupt += len(stats.corrupt_records)
        if num_corrupt > config.prepare.max_corrupt_records:
          raise UserError(_describe_corrupt_record(stats.corrupt_records[0], num_corrupt, config))
    all_stats = {shard: read_stats(folder, shard) for shard in shards}
    _write_metadata(builder, plan, all_stats, folder, final)
    remove_leftovers(folder)            # a worker of an interrupted build may have lived until this one had started
    _move_to_final(folder, final, [stats_path(final, shard) for shard in shards])


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
  """Holds a lock against a second build into `folder`; it ends with the process.

  Buckets have no locks. Two builds into one bucket do no harm, as both write the same bytes.
  """
  if "://" in str(folder):
    folder.mkdir(parents=True, exist_ok=True)
    yield
    return
  folder.parent.mkdir(parents=True, exist_ok=True)
  with acquire_lock(folder.parent / f".{folder.name}.lock",
                    f"another `mcsam prepare` is writing {folder}: wait until it ends, or stop it"):
    yield


def _write_metadata(builder: records.RecordBuilder, plan: records.BuildPlan, all_stats: dict[Shard, ShardStats],
                    folder: epath.Path, final: epath.Path) -> None:
  """Writes build.json, words.npz, corrupt_records.jsonl and the metadata of TFDS to `folder`.

  Raises:
    UserError: a split has no records.
  """
  counts, split_infos, corrupt_records, words, warnings = {}, [], [], {}, collections.Counter()
  for split in plan.entries:
    split_stats = [stats for shard, stats in all_stats.items() if shard.split == split]
    skipped = collections.Counter(plan.skipped.get(split, {}))
    for stats in split_stats:
      skipped.update(stats.skipped)
      corrupt_records += stats.corrupt_records
      warnings.update(stats.warnings)
    shard_lengths = [stats.kept for stats in split_stats]
    if not sum(shard_lengths):
      reasons = ", ".join(f"{reason}: {count:,}" for reason, count in skipped.items()) or "the source has none"
      raise UserError(f"split {split} has no study left ({reasons}): check the fields of `data` and the source")
    words[split] = np.array([row for stats in split_stats for row in stats.words], np.int32).reshape(-1, 2)
    counts[split] = {"kept": sum(shard_lengths), "skipped": dict(sorted(skipped.items()))}
    split_infos.append(tfds.core.SplitInfo(
        name=split, shard_lengths=shard_lengths, num_bytes=sum(stats.num_bytes for stats in split_stats),
        filename_template=make_file_template(folder, builder, split)))
  words_file = io.BytesIO()
  np.savez_compressed(words_file, **words)
  atomic_write(folder / "words.npz", words_file.getvalue())
  notes = [*plan.notes, *(f"{count:,} images: {warning}" for warning, count in sorted(warnings.items()))]
  if corrupt_records:
    notes.append(f"{len(corrupt_records)} files could not be read: {final / 'corrupt_records.jsonl'}")
    atomic_write(folder / "corrupt_records.jsonl", "".join(json.dumps(record) + "\n" for record in corrupt_records))
  atomic_write(folder / "build.json", json.dumps({"splits": counts, "notes": notes}, indent=1) + "\n")
  builder.info.set_splits(tfds.core.SplitDict(split_infos))
  builder.info.write_to_directory(folder)


def _move_to_final(folder: epath.Path, final: epath.Path, stats_files: list[epath.Path]) -> None:
  """Gives the folder of a complete build its final name, and deletes the files that only the build needed."""
  if "://" not in str(final):
    folder.rename(final)
  else:                                             # folders of a bucket can't be renamed
    unneeded = {path.name for path in stats_files}
    paths = [path for path in folder.iterdir() if not path.is_dir() and path.name not in unneeded]
    for path in sorted(paths, key=lambda path: path.name == "dataset_info.json"):      # it marks a complete build
      path.copy(final / path.name, overwrite=True)
    folder.rmtree()
  for path in stats_files:                          # a build that is stopped here is complete
    path.unlink(missing_ok=True)
  if (final / "plan").exists():
    (final / "plan").rmtree()


def _describe_corrupt_record(record: dict, count: int, config: ConfigDict) -> str:
  """Returns the error for more corrupt records than are allowed, `record` being the first that passed the limit.

  For a restricted data set the message contains no names, unless `prepare.show_ids` asks for them.
  """
  limit = config.prepare.max_corrupt_records
  total = f"; {count} corrupt records are more than prepare.max_corrupt_records={limit}" if limit else ""
  if config.data.restricted and not config.prepare.show_ids:
    digest = f", SHA-256 of the file {record['sha256'][:16]}" if record["sha256"] else ""
    return (f"record {record['position']} of split {record['split']} can't be read ({record['reason']}{digest}); "
            f"--show-ids shows its name, prepare.max_corrupt_records=N allows to skip N records{total}")
  return (f"record {record['record']}: {record['file']} can't be read ({record['reason']}); replace the file, remove "
          f"the record from the source, or allow to skip N records with prepare.max_corrupt_records=N{total}")
