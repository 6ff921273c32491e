"""Writes shards in this process, in several processes of this machine, or with Apache Beam on many machines."""

from collections.abc import Generator, Sequence
import concurrent.futures.process
import dataclasses
import json
import multiprocessing
import os
import shlex
import signal
import threading

from etils import epath
from ml_collections import ConfigDict

from input_pipeline import datasets
from input_pipeline.builder.shards import is_finished, read_stats, Shard, ShardStats, write_shard
from mcsam_jax.errors import UserError

MAX_ENTRIES_IN_PROCESS = 256      # so many entries are written here faster than worker processes start


def write_shards(config: ConfigDict, folder: epath.Path, shards: Sequence[Shard],
                 num_entries: int) -> Generator[tuple[Shard, ShardStats], None, None]:
  """Writes shards and yields each with its statistics, in the order in which they finish.

  Closing the generator lets shards that are being written finish and starts no new one.

  Args:
    config: `prepare.num_workers` and `prepare.beam_options` choose how the shards are written.
    folder: folder of the build, which holds the entries of each shard.
    num_entries: number of entries of the whole data set.

  Raises:
    UserError: a worker process was killed, or Beam is missing or rejects its options.
  """
  if config.prepare.beam_options:
    yield from _write_with_beam(config, folder, shards)
    return
  num_workers = min(config.prepare.num_workers or os.cpu_count() or 1, len(shards))
  if num_workers > 1 and num_entries > MAX_ENTRIES_IN_PROCESS:
    yield from _write_in_processes(config, folder, shards, num_workers)
    return
  builder = datasets.make_builder(config)
  for shard in shards:
    yield shard, write_shard(builder, folder, shard, config.prepare.max_corrupt_records)


def _write_in_processes(config: ConfigDict, folder: epath.Path, shards: Sequence[Shard],
                        num_workers: int) -> Generator[tuple[Shard, ShardStats], None, None]:
  # Processes are spawned, because JAX and TensorFlow run threads, which a fork would break.
  with concurrent.futures.ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _start_process,
                                              (config.to_json_best_effort(), str(folder))) as pool:
    pending = {pool.submit(_write_in_process, shard): shard for shard in shards}
    try:
      for future in concurrent.futures.as_completed(pending):
        yield pending[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError("a worker process was killed, perhaps because memory ran out: run the same command again with a "
                      "smaller prepare.num_workers, it keeps the shards that are finished") from error
    finally:
      pool.shutdown(wait=True, cancel_futures=True)     # shards that are being written are completed


def _start_process(config_json: str, folder: str) -> None:
  """Initializes a worker process, which exits when its parent process ends, however that happens."""
  global _process_state
  config = ConfigDict(json.loads(config_json))
  _process_state = (datasets.make_builder(config), epath.Path(folder), config.prepare.max_corrupt_records)
  signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C is handled by the parent process
  parent = multiprocessing.parent_process()
  assert parent is not None
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_in_process(shard: Shard) -> ShardStats:
  builder, folder, max_corrupt_records = _process_state
  return write_shard(builder, folder, shard, max_corrupt_records)


def _write_with_beam(config: ConfigDict, folder: epath.Path,
                     shards: Sequence[Shard]) -> Generator[tuple[Shard, ShardStats], None, None]:
  """Writes shards with the Beam runner of `prepare.beam_options`; its machines must see the same paths."""
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError("prepare.beam_options needs Apache Beam: pip install -e '.[beam]'") from error
  config_json, folder_name = config.to_json_best_effort(), str(folder)
  try:
    options = PipelineOptions(shlex.split(config.prepare.beam_options))
    with beam.Pipeline(options=options) as pipeline:
      _ = (pipeline | beam.Create([dataclasses.asdict(shard) for shard in shards]) | beam.Reshuffle()
           | beam.Map(write_shard_on_beam, config_json, folder_name))
  except (ValueError, SystemExit) as error:         # how Beam rejects options
    raise UserError(f"prepare.beam_options={config.prepare.beam_options} isn't accepted by Apache Beam "
                    f"({' '.join(str(error).split())})") from error
  for shard in shards:
    yield shard, read_stats(folder, shard)


def write_shard_on_beam(shard_fields: dict, config_json: str, folder: str) -> None:
  """Writes one shard, unless it is finished, on a machine that shares only this package and the paths."""
  config, shard = ConfigDict(json.loads(config_json)), Shard(**shard_fields)
  builder = datasets.make_builder(config)
  if not is_finished(epath.Path(folder), builder, shard):
    write_shard(builder, epath.Path(folder), shard, config.prepare.max_corrupt_records)
