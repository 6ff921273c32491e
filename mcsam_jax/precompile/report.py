"""Formats the figures of `mcsam precompile` as a text table."""

from collections.abc import Iterator

# What one run of each program does.
UNITS = {"train": "step", "decode": "batch of reports", "reward_sample": "batch of samples", "reward_update": "update"}


def format_table(figures: dict, by_part: bool = False) -> str:
  """Returns the figures of `precompile` as text; `by_part` adds one line per part of the network."""
  return "\n".join(line.rstrip() for line in _format_lines(figures, by_part))


def _format_lines(figures: dict, by_part: bool) -> Iterator[str]:
  hbm, step, bound = figures["hbm"], figures["per_step"], figures["roofline"]
  slices = f", {figures['slices']} slices of {figures['topology']}" if figures["slices"] > 1 else ""
  unit = UNITS[figures["what"]]
  yield _row("devices", f"{figures['devices']} x {figures['device_kind']} ({figures['chips']} chips, "
             f"{figures['hosts']} hosts{slices})")
  yield _row("studies", f"{figures['studies']:,}, {figures['studies_per_chip']:g} per chip; "
             f"vocabulary of {figures['vocabulary']:,} ({figures['vocabulary_source']})")
  if figures["train_reports"]:
    yield _row("retrieval", f"from {figures['train_reports']:,} training reports ({figures['train_reports_source']})")
  yield _row("compilation", f"{figures['compile_seconds']:.0f} s, after {figures['lower_seconds']:.0f} s of tracing")
  yield ""
  yield f"HBM per device ({_bytes(hbm['available'])} available)"
  yield _row("  arguments", _bytes(hbm["arguments"]))
  yield _row("  outputs", f"{_bytes(hbm['outputs'])}, of which {_bytes(hbm['aliased'])} reuse the arguments' memory")
  yield _row("  temporaries", _bytes(hbm["temporaries"]))
  yield _row("  program", _bytes(hbm["program"]))
  yield _row("  total", f"{_bytes(hbm['total'])}, {hbm['total'] / hbm['available']:.0%}")
  yield ""
  worst = step["with_most_expensive_branches"]
  yield f"per {unit} and device"
  yield _row("  compute", f"{step['flops'] / 1e12:.3f} TFLOP in matrix products and convolutions")
  yield _row("  HBM", f"{_bytes(step['hbm_bytes'])}: {_bytes(step['hbm_read'])} read, "
             f"{_bytes(step['hbm_written'])} written")
  yield _row("  worst case", f"{worst['flops'] / 1e12:.3f} TFLOP, {_bytes(worst['hbm_bytes'])}, if every conditional "
             " takes its most expensive branch (ties in the memory scores)")
  clock = bound["chip"]["clock_hz"]
  seconds = f", {1000 * step['estimated_cycles'] / clock:.3f} ms at {clock / 1e9:.2f} GHz" if clock else ""
  yield _row("  compiler estimate", f"{step['estimated_cycles'] / 1e6:.1f} million cycles{seconds}, summed over "
             "instructions; custom kernels have no estimate")
  if step["loops_of_unknown_length"]:
    yield _row("", f"{step['loops_of_unknown_length']} loops with a data-dependent trip count, "
               + ("counted once" if figures["what"] in ("train", "reward_update") else
                  "counted for reports of the maximum length"))
  yield ""
  yield f"collectives per {unit} (bytes of one device's results)"
  for row in figures["collectives"]:
    yield _row(f"  {row['kind']}", f"{row['network'].upper()}  {row['count']:>5} x, {_bytes(row['bytes']):>9}, groups "
               f"of {row['members']}: {row['purpose']}")
  if not figures["collectives"]:
    yield "  none"
  yield ""
  yield f"minimum time per {unit} from published peaks ({bound['chip']['source']})"
  for name, field, peak in (("compute", "compute_seconds", f"{bound['chip']['flops'] / 1e12:g} TFLOP/s"),
                            ("HBM", "hbm_seconds", f"{bound['chip']['hbm_bandwidth'] / 1e9:g} GB/s"),
                            ("ICI", "ici_seconds", f"{bound['chip']['ici_bandwidth'] / 1e9:.0f} GB/s sent per chip"),
                            ("DCN", "dcn_seconds", "per-chip share of the host's network")):
    if bound[field] is None:
      yield _row(f"  {name}", "not published")
    elif bound[field] or name != "DCN":
      bottleneck = "  <- bottleneck" if bound["bottleneck"] == name else ""
      yield _row(f"  {name}", f"{1000 * bound[field]:9.3f} ms{bottleneck:16} {peak}")
  yield _row("  utilization", f"at most {bound['utilization']:.1%} of the peak: "
             f"{bound['model_flops'] / 1e12:.2f} TFLOP per {unit} {bound['model_flops_counted']}")
  yield _row("  studies", f"at most {bound['studies_per_second_per_chip']:.1f} per second and chip")
  if bound["estimated_seconds"]:
    yield _row("  share", f"this minimum is {bound['share_of_roof']:.0%} of the compiler's estimate of the time")
  if tokens := figures["tokens"]:
    estimated = tokens["estimated_per_second_per_chip"]
    yield _row("  tokens", f"at most {tokens['per_second_per_chip']:,.0f} per second and chip"
               + (f" ({estimated:,.0f} by the compiler's estimate)" if estimated else "")
               + f", {_bytes(tokens['hbm_bytes_per_token'])} of HBM traffic each; {tokens['per_report']} per report")
  if by_part:
    yield ""
    yield f"{'by part':44} {'HBM':>9} {'share':>6} {'TFLOP':>8} {'M cycles':>9}"
    for name, group in figures["by_part_in_detail"].items():
      yield (f"  {name:42} {_bytes(group['hbm_bytes']):>9} {group['hbm_bytes'] / max(1, step['hbm_bytes']):>6.1%} "
             f"{group['flops'] / 1e12:>8.3f} {group['cycles'] / 1e6:>9.2f}")


def _row(name: str, text: str) -> str:
  return f"{name:20} {text}"


def _bytes(count: float) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.2f} {unit}"
  return f"{count:.0f} B"
