"""`mcsam precompile`: does the real step compile for a pod that nobody has at hand, fit, and what binds it there.

Compiles with libtpu alone and reads the answer from the compiled program. All figures are of one run of the program:
a training step of the global batch, or the search that writes a batch of reports.
"""

import dataclasses
import re
import tempfile
import time

import jax
from ml_collections import ConfigDict

from input_pipeline.builder.tokenizer import tokenizer_dir
from input_pipeline.splits import open_split
from input_pipeline.tokenizer import load_tokenizer
from mcsam_jax.decoding.loop import cache_schedule
from mcsam_jax.distributed.mesh import check_train_batch_size, decode_batch_size, mesh_shape
from mcsam_jax.errors import UserError
from mcsam_jax.partitioning import MESH_AXES
from mcsam_jax.precompile.collectives import Transfer, transfers
from mcsam_jax.precompile.cost import analyse, Costs, total_by
from mcsam_jax.precompile.parts import detail_of, part_of, purpose_of
from mcsam_jax.precompile.program import lower_decode, lower_train
from mcsam_jax.precompile.roofline import roofline, utilisation
from mcsam_jax.precompile.topology import Topology
from mcsam_jax.training.flops import train_flops

R2GEN_MIMIC_CXR_WORDS = 4347     # of R2Gen's tokenizer on MIMIC-CXR, where no vocabulary is prepared
R2GEN_MIMIC_CXR_RECORDS = 270790 # of its train split
LESS_MEMORY = "fewer studies a chip; in training also train.remat=layers or train.grad_accum_steps"
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(UserError):
  """The program needs more HBM than a chip has.

  Attributes:
    needed, available: bytes a device; None where the compiler doesn't say.
  """
  status = 3

  def __init__(self, message: str, needed: int | None, available: int | None):
    super().__init__(message)
    self.needed, self.available = needed, available


@dataclasses.dataclass
class Compiled:
  """A compiled program and what it took."""
  executable: jax.stages.Compiled
  lower_seconds: float
  compile_seconds: float


def precompile(config: ConfigDict, topology: Topology, what: str = "train", vocab_size: int | None = None,
               verbose: bool = False, log=print) -> tuple[dict, Costs]:
  """Compiles the step (`train`) or the search (`decode`) of a config; returns figures for JSON, and its costs.

  Args:
    vocab_size: None: of the config's prepared vocabulary, or else R2Gen's on MIMIC-CXR.
    verbose: a compiler's error is told whole.
    show: is told what takes long.

  Raises:
    DoesNotFit: there isn't enough memory.
    UserError: a field doesn't go with the topology, or the compiler refuses.
  """
  vocab_size, source = (vocab_size, "given") if vocab_size else _vocabulary(config)
  consensus = what == "decode" and config.decode.search == "mbr"
  train_reports, their_source = _train_reports(config) if consensus and config.decode.retrieval_weight else (0, "not asked")
  sizes = dict(zip(MESH_AXES, mesh_shape(config, len(topology.devices))))
  if what == "train":
    check_train_batch_size(config, sizes)
  batch = config.train.batch_size if what == "train" else decode_batch_size(config, sizes)
  log(f"compiling {what} for {len(topology.devices)} x {topology.devices[0].device_kind}, {batch} studies; "
       "minutes for a large model")
  compiled = _compile(config, topology, what, vocab_size, train_reports, verbose)
  trips = [] if what == "train" else stages(config)
  text = compiled.executable.as_text()
  costs = analyse(text, unknown_trips=trips)
  dearest = analyse(costs.program, dearest=True, unknown_trips=trips)
  figures = {
      "what": what, "topology": topology.name, "slices": topology.slices, "chip": topology.chip.name,
      "device_kind": topology.devices[0].device_kind, "devices": len(topology.devices), "chips": topology.chips,
      "hosts": topology.hosts, "studies": batch, "studies_per_chip": batch / topology.chips,
      "vocabulary": vocab_size, "vocabulary_source": source,
      "train_reports": train_reports, "train_reports_source": their_source,
      "lower_seconds": round(compiled.lower_seconds, 1), "compile_seconds": round(compiled.compile_seconds, 1),
      "fits": True, "hbm": _memory(compiled.executable, topology)}
  return figures | describe(config, costs, dearest, topology, batch, vocab_size, what), costs


def stages(config: ConfigDict) -> list[int]:
  """Returns how many words each loop of a search writes, one loop a size of its cache, for the longest reports."""
  length, beams = config.tokenizer.max_length, config.decode.beam_size
  most = length if config.decode.search == "mbr" else length * beams      # draws share no cache
  sizes = [0, *(min(size, length) for size in cache_schedule(length, most))]
  return [after - before for before, after in zip(sizes, sizes[1:])]


def describe(config: ConfigDict, costs: Costs, dearest: Costs, topology: Topology, batch: int, vocab_size: int,
             what: str) -> dict:
  """Returns the figures of a program's costs, its cheapest branches and its dearest ones."""
  sent, devices, chip = transfers(costs, len(topology.devices)), len(topology.devices), topology.chip
  bound = roofline(costs, sent, chip)
  needed, counted = _model_flops(config, costs, batch, vocab_size, devices, what)
  by_part = lambda key: {name: {field: round(value) for field, value in group.items()}
                         for name, group in total_by(costs, lambda row: key(row, costs)).items()}
  return {
      "a_step": {"flops": costs.flops, "hbm_bytes": round(costs.hbm_bytes),
                 "hbm_read": round(sum(row.hbm_read for row in costs.rows)),
                 "hbm_written": round(sum(row.hbm_written for row in costs.rows)),
                 "estimated_cycles": round(costs.cycles), "loops_of_unknown_length": len(costs.unknown_loops),
                 "with_dearest_branches": {"flops": dearest.flops, "hbm_bytes": round(dearest.hbm_bytes)}},
      "collectives": _collectives(sent, costs),
      "interconnect": {network: {"bytes": sum(transfer.bytes * transfer.times for transfer in sent
                                              if transfer.network == network),
                                 "wire_bytes": round(sum(transfer.wire_bytes for transfer in sent
                                                         if transfer.network == network))}
                       for network in ("ici", "dcn")},
      "roofline": {"chip": {key: value for key, value in dataclasses.asdict(chip).items()},
                   "compute_seconds": bound.compute, "hbm_seconds": bound.hbm, "ici_seconds": bound.ici,
                   "dcn_seconds": bound.dcn, "binds": bound.binds, "seconds": bound.seconds,
                   "model_flops": needed, "model_flops_counted": counted,
                   "utilisation": utilisation(needed, devices, bound.seconds, chip),
                   "studies_per_second_per_chip": batch / topology.chips / bound.seconds},
      "by_part": by_part(part_of), "by_part_in_detail": by_part(detail_of)}


def _model_flops(config: ConfigDict, costs: Costs, batch: int, vocab_size: int, devices: int,
                 what: str) -> tuple[float, str]:
  """Returns the operations of a step that the utilisation counts, over all devices, and how they were counted."""
  if what == "train":
    return train_flops(config, vocab_size, batch), "that the network needs"
  return costs.flops * devices, "all that the program executes"


def _compile(config: ConfigDict, topology: Topology, what: str, vocab_size: int, train_reports: int,
             verbose: bool) -> Compiled:
  start = time.monotonic()
  lowered = (lower_train(config, topology, vocab_size) if what == "train" else
             lower_decode(config, topology, vocab_size, train_reports))
  middle = time.monotonic()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise _told(str(error), topology, verbose) from error
  return Compiled(executable, middle - start, time.monotonic() - middle)


def _told(message: str, topology: Topology, verbose: bool) -> UserError:
  """Returns what a user is told of the compiler's error."""
  where = f"{topology.chip.name} chip of {topology.name}"
  if re.search("vmem", message, re.IGNORECASE) and "RESOURCE_EXHAUSTED" in message:
    return UserError(f"a kernel doesn't fit in the vector memory of a {where}, which the number of studies doesn't change: "
                     f"a smaller memory.num_slots or width may fit ({_first_line(message)})")
  if "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message:
    needed, available = memory_missing(message)
    if needed:
      return DoesNotFit(f"doesn't fit: {needed / 2**30:.2f} GiB of HBM are needed and a {where} has "
                        f"{available / 2**30:.2f} GiB, {(needed - available) / 2**30:.2f} GiB are missing; {LESS_MEMORY}",
                        needed, available)
    return DoesNotFit(f"doesn't fit in the HBM of a {where}: {_first_line(message)}", None, None)
  if verbose:
    return UserError(message)
  if len(message) <= 300 and "\n" not in message:
    return UserError(f"the compiler says: {message}")
  with tempfile.NamedTemporaryFile("w", prefix="mcsam-precompile-", suffix=".txt", delete=False) as file:
    file.write(message)
  return UserError(f"the compiler says: {_first_line(message)} (whole in {file.name}, or with --verbose)")


def memory_missing(message: str) -> tuple[int | None, int | None]:
  """Returns the bytes of HBM that a program needs and that there are, by the compiler's message; None: unsaid."""
  size = r"([0-9.]+)([KMGT]?)"
  for pattern in (rf"[Uu]sed {size}B? of {size}B? hbm", rf"\({size}B?\) exceeds available HBM \({size}B?\)"):
    found = re.search(pattern, message)
    if found:
      needed, unit, available, of = found.groups()
      return int(float(needed) * _SIZES[unit]), int(float(available) * _SIZES[of])
  return None, None


def _first_line(message: str) -> str:
  return next(iter(message.strip().splitlines()), "")[:240]


def _memory(executable: jax.stages.Compiled, topology: Topology) -> dict[str, int]:
  """Returns bytes of HBM on one device."""
  stats = executable.memory_analysis()
  peak = (stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
          + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)
  return {"arguments": stats.argument_size_in_bytes, "outputs": stats.output_size_in_bytes,
          "aliased": stats.alias_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
          "program": stats.generated_code_size_in_bytes, "together": peak,
          "available": int(topology.chip.hbm_bytes / topology.chip.devices_per_chip)}


def _collectives(sent: list[Transfer], costs: Costs) -> list[dict]:
  """Returns a row a network, kind, number of members and purpose: how many, and their bytes."""
  rows = {}
  for transfer in sent:
    key = (transfer.network, transfer.kind, transfer.members, purpose_of(transfer.cost, costs))
    row = rows.setdefault(key, {"count": 0, "bytes": 0, "wire_bytes": 0})
    row["count"] += transfer.times
    row["bytes"] += transfer.bytes * transfer.times
    row["wire_bytes"] += round(transfer.wire_bytes)
  return [dict(zip(("network", "kind", "members", "purpose"), key)) | row
          for key, row in sorted(rows.items(), key=lambda item: -item[1]["bytes"])]


def _vocabulary(config: ConfigDict) -> tuple[int, str]:
  try:
    return load_tokenizer(tokenizer_dir(config)).vocab_size, "prepared"
  except (UserError, OSError):
    return R2GEN_MIMIC_CXR_WORDS, "assumed: R2Gen's on MIMIC-CXR"


def _train_reports(config: ConfigDict) -> tuple[int, str]:
  try:
    return len(open_split(config, "train")), "prepared"
  except (UserError, OSError):
    return R2GEN_MIMIC_CXR_RECORDS, "assumed: R2Gen's of MIMIC-CXR"
