"""`mcsam precompile`: does the program compile for a TPU pod, does it fit in memory, and what is its bottleneck?

Compiles with libtpu, without a TPU, and analyzes the compiled program. All figures are for one run of the program:
a training step on the global batch, the search that generates one batch of reports, or one of the two programs of a
step of reward fine-tuning.
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
from mcsam_jax.precompile.collectives import find_transfers, Transfer
from mcsam_jax.precompile.cost import analyze_costs, Costs, sum_by
from mcsam_jax.precompile.parts import get_detail, get_part, get_purpose
from mcsam_jax.precompile.program import lower_decode, lower_reward_sample, lower_reward_update, lower_train
from mcsam_jax.precompile.roofline import compute_roofline, compute_utilization
from mcsam_jax.precompile.topology import Topology
from mcsam_jax.training.flops import train_flops

PROGRAMS = ("train", "decode", "reward_sample", "reward_update")
DECODES = ("decode", "reward_sample")                       # programs with decode loops
R2GEN_MIMIC_CXR_WORDS = 4347       # vocabulary of R2Gen's tokenizer on MIMIC-CXR, used if none is prepared
R2GEN_MIMIC_CXR_RECORDS = 270790   # its train split
LESS_MEMORY = "use fewer studies per chip; for training also train.remat=layers or train.grad_accum_steps"
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(UserError):
  """The program needs more HBM than a chip has.

  Attributes:
    needed, available: bytes per device; None if the compiler doesn't report them.
  """
  status = 3

  def __init__(self, message: str, needed: int | None, available: int | None):
    """Stores the message and the sizes of memory."""
    super().__init__(message)
    self.needed, self.available = needed, available


@dataclasses.dataclass
class Compiled:
  """A compiled program and the seconds to lower and compile it."""
  executable: jax.stages.Compiled
  lower_seconds: float
  compile_seconds: float


def precompile(config: ConfigDict, topology: Topology, what: str = "train", vocab_size: int | None = None,
               verbose: bool = False, log=print) -> tuple[dict, Costs]:
  """Compiles a program of a config for a topology.

  Args:
    what: one of PROGRAMS.
    vocab_size: None: size of the prepared vocabulary, or else of R2Gen's on MIMIC-CXR.
    verbose: report compiler errors in full.
    log: receives progress lines.

  Returns:
    The figures, serializable as JSON, and the costs of all instructions.

  Raises:
    DoesNotFitError: the program needs more memory than the chip has.
    UserError: a config field is incompatible with the topology, or compilation fails.
  """
  vocab_size, source = (vocab_size, "given") if vocab_size else _get_vocab_size(config)
  retrieves = what == "decode" and config.decode.search == "mbr" and config.decode.retrieval_weight
  train_reports, reports_source = _count_train_reports(config) if retrieves else (0, "not used")
  sizes: dict[str, int] = dict(zip(MESH_AXES, mesh_shape(config, len(topology.devices))))
  if what != "decode":
    check_train_batch_size(config, sizes)
  batch = decode_batch_size(config, sizes) if what == "decode" else config.train.batch_size
  log(f"compiling {what} for {len(topology.devices)} x {topology.devices[0].device_kind}, {batch} studies; "
       "takes minutes for a large model")
  compiled = _compile(config, topology, what, vocab_size, train_reports, verbose)
  trips = get_loop_lengths(config, what)
  text = compiled.executable.as_text()
  if text is None:
    raise UserError("the compiler doesn't return the text of the compiled program")
  costs = analyze_costs(text, unknown_trips=trips)
  most_expensive = analyze_costs(costs.program, most_expensive=True, unknown_trips=trips)
  figures = {
      "what": what, "topology": topology.name, "slices": topology.slices, "chip": topology.chip.name,
      "device_kind": topology.devices[0].device_kind, "devices": len(topology.devices), "chips": topology.chips,
      "hosts": topology.hosts, "studies": batch, "studies_per_chip": batch / topology.chips,
      "vocabulary": vocab_size, "vocabulary_source": source,
      "train_reports": train_reports, "train_reports_source": reports_source,
      "lower_seconds": round(compiled.lower_seconds, 1), "compile_seconds": round(compiled.compile_seconds, 1),
      "fits": True, "hbm": _summarize_memory(compiled.executable, topology)}
  return figures | describe(config, costs, most_expensive, topology, batch, vocab_size, what), costs


def get_loop_lengths(config: ConfigDict, what: str = "decode") -> list[int]:
  """Returns the trip count of each decode loop (one loop per cache size) for reports of the maximum length."""
  if what not in DECODES:
    return []
  length, beams = config.tokenizer.max_length, config.decode.beam_size
  samples = what == "reward_sample" or config.decode.search == "mbr"           # they share no cache slots
  max_slots = length if samples else length * beams
  sizes = [0, *(min(size, length) for size in cache_schedule(length, max_slots))]
  return [after - before for before, after in zip(sizes, sizes[1:])]


def describe(config: ConfigDict, costs: Costs, most_expensive: Costs, topology: Topology, batch: int, vocab_size: int,
             what: str) -> dict:
  """Returns figures of a program from its costs with the cheapest and with the most expensive branches."""
  sent, devices, chip = find_transfers(costs, len(topology.devices)), len(topology.devices), topology.chip
  bound = compute_roofline(costs, sent, chip)
  needed, counted = _model_flops(config, costs, batch, vocab_size, devices, what)
  seconds = costs.cycles / chip.clock_hz if chip.clock_hz and costs.cycles else None
  by_part = lambda key: {name: {field: round(value) for field, value in group.items()}
                         for name, group in sum_by(costs, lambda row: key(row, costs)).items()}
  return {
      "per_step": {"flops": costs.flops, "hbm_bytes": round(costs.hbm_bytes),
                 "hbm_read": round(sum(row.hbm_read for row in costs.rows)),
                 "hbm_written": round(sum(row.hbm_written for row in costs.rows)),
                 "estimated_cycles": round(costs.cycles), "loops_of_unknown_length": len(costs.unknown_loops),
                 "with_most_expensive_branches": {"flops": most_expensive.flops,
                                                    "hbm_bytes": round(most_expensive.hbm_bytes)}},
      "collectives": _summarize_collectives(sent, costs),
      "interconnect": {network: {"bytes": sum(transfer.bytes * transfer.times for transfer in sent
                                              if transfer.network == network),
                                 "wire_bytes": round(sum(transfer.wire_bytes for transfer in sent
                                                         if transfer.network == network))}
                       for network in ("ici", "dcn")},
      "roofline": {"chip": {key: value for key, value in dataclasses.asdict(chip).items()},
                   "compute_seconds": bound.compute, "hbm_seconds": bound.hbm, "ici_seconds": bound.ici,
                   "dcn_seconds": bound.dcn, "bottleneck": bound.bottleneck, "seconds": bound.seconds,
                   "model_flops": needed, "model_flops_counted": counted,
                   "utilization": compute_utilization(needed, devices, bound.seconds, chip),
                   "studies_per_second_per_chip": batch / topology.chips / bound.seconds,
                   "estimated_seconds": seconds, "share_of_roof": bound.seconds / seconds if seconds else None},
      "tokens": _describe_tokens(config, costs, topology, batch, bound.seconds, seconds) if what in DECODES else None,
      "by_part": by_part(get_part), "by_part_in_detail": by_part(get_detail)}


def _describe_tokens(config: ConfigDict, costs: Costs, topology: Topology, batch: int, roof_seconds: float,
                     estimated_seconds: float | None) -> dict:
  """Returns figures per generated token: a study counts once, however many beams or samples its search follows."""
  tokens = batch * config.tokenizer.max_length / topology.chips
  return {"per_report": config.tokenizer.max_length,
          "hbm_bytes_per_token": costs.hbm_bytes * topology.chip.devices_per_chip / tokens,
          "per_second_per_chip": tokens / roof_seconds,
          "estimated_per_second_per_chip": tokens / estimated_seconds if estimated_seconds else None}


def _model_flops(config: ConfigDict, costs: Costs, batch: int, vocab_size: int, devices: int,
                 what: str) -> tuple[float, str]:
  """Returns the FLOPs per step that count for utilization, on all devices, and how they were counted."""
  if what == "train" and (needed := train_flops(config, vocab_size, batch)) is not None:
    return needed, "required by the network"
  return costs.flops * devices, "executed by the program"


def _compile(config: ConfigDict, topology: Topology, what: str, vocab_size: int, train_reports: int,
             verbose: bool) -> Compiled:
  start = time.monotonic()
  lowered = (lower_decode(config, topology, vocab_size, train_reports) if what == "decode" else
             {"train": lower_train, "reward_sample": lower_reward_sample, "reward_update": lower_reward_update}[what](
                 config, topology, vocab_size))
  middle = time.monotonic()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise _translate_compiler_error(str(error), topology, verbose) from error
  return Compiled(executable, middle - start, time.monotonic() - middle)


def _translate_compiler_error(message: str, topology: Topology, verbose: bool) -> UserError:
  """Returns the error for the user that explains a compiler error."""
  where = f"{topology.chip.name} chip of {topology.name}"
  if re.search("vmem", message, re.IGNORECASE) and "RESOURCE_EXHAUSTED" in message:
    return UserError(f"a kernel doesn't fit in the vector memory (VMEM) of a {where}, whatever the batch size; "
                     f"a smaller memory.num_slots or model width may fit ({_first_line(message)})")
  if "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message:
    needed, available = parse_memory_error(message)
    if needed and available is not None:
      return DoesNotFitError(f"doesn't fit: {needed / 2**30:.2f} GiB of HBM needed, a {where} has "
                        f"{available / 2**30:.2f} GiB, {(needed - available) / 2**30:.2f} GiB too few; {LESS_MEMORY}",
                        needed, available)
    return DoesNotFitError(f"doesn't fit in the HBM of a {where}: {_first_line(message)}", None, None)
  if verbose:
    return UserError(message)
  if len(message) <= 300 and "\n" not in message:
    return UserError(f"compilation failed: {message}")
  with tempfile.NamedTemporaryFile("w", prefix="mcsam-precompile-", suffix=".txt", delete=False) as file:
    file.write(message)
  return UserError(f"compilation failed: {_first_line(message)} (full error in {file.name} or with --verbose)")


def parse_memory_error(message: str) -> tuple[int | None, int | None]:
  """Returns the needed and available bytes of HBM in a compiler error; None if they aren't in it."""
  size = r"([0-9.]+)([KMGT]?)"
  for pattern in (rf"[Uu]sed {size}B? of {size}B? hbm", rf"\({size}B?\) exceeds available HBM \({size}B?\)"):
    found = re.search(pattern, message)
    if found:
      needed, needed_unit, available, available_unit = found.groups()
      return int(float(needed) * _SIZES[needed_unit]), int(float(available) * _SIZES[available_unit])
  return None, None


def _first_line(message: str) -> str:
  return next(iter(message.strip().splitlines()), "")[:240]


def _summarize_memory(executable: jax.stages.Compiled, topology: Topology) -> dict[str, int]:
  """Returns the HBM usage of one device in bytes."""
  stats = executable.memory_analysis()
  if stats is None:
    raise UserError("the compiler doesn't report the memory usage of the compiled program")
  total = (stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
           + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)
  return {"arguments": stats.argument_size_in_bytes, "outputs": stats.output_size_in_bytes,
          "aliased": stats.alias_size_in_bytes, "temporaries": stats.temp_size_in_bytes,
          "program": stats.generated_code_size_in_bytes, "total": total,
          "available": int(topology.chip.hbm_bytes / topology.chip.devices_per_chip)}


def _summarize_collectives(sent: list[Transfer], costs: Costs) -> list[dict]:
  """Returns one row per network, kind, group size and purpose: count and bytes, most bytes first."""
  rows = {}
  for transfer in sent:
    key = (transfer.network, transfer.kind, transfer.members, get_purpose(transfer.cost, costs))
    row = rows.setdefault(key, {"count": 0, "bytes": 0, "wire_bytes": 0})
    row["count"] += transfer.times
    row["bytes"] += transfer.bytes * transfer.times
    row["wire_bytes"] += round(transfer.wire_bytes)
  return [dict(zip(("network", "kind", "members", "purpose"), key)) | row
          for key, row in sorted(rows.items(), key=lambda item: -item[1]["bytes"])]


def _get_vocab_size(config: ConfigDict) -> tuple[int, str]:
  try:
    return load_tokenizer(tokenizer_dir(config)).vocab_size, "prepared"
  except (UserError, OSError):
    return R2GEN_MIMIC_CXR_WORDS, "assumed: R2Gen's on MIMIC-CXR"


def _count_train_reports(config: ConfigDict) -> tuple[int, str]:
  try:
    return len(open_split(config, "train")), "prepared"
  except (UserError, OSError):
    return R2GEN_MIMIC_CXR_RECORDS, "assumed: R2Gen's MIMIC-CXR"
