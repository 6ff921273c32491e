"""The figures of `mcsam precompile` as a table that a person reads."""

from collections.abc import Iterator


def table(figures: dict, by_part: bool = False) -> str:
  """Returns the lines of the figures that `precompile` gives."""
  return "\n".join(line.rstrip() for line in _lines(figures, by_part))


def _lines(figures: dict, by_part: bool) -> Iterator[str]:
  hbm, step, bound = figures["hbm"], figures["a_step"], figures["roofline"]
  slices = f", {figures['slices']} slices of {figures['topology']}" if figures["slices"] > 1 else ""
  unit = "step" if figures["what"] == "train" else "batch of reports"
  yield _row("devices", f"{figures['devices']} x {figures['device_kind']} ({figures['chips']} chips, "
             f"{figures['hosts']} hosts{slices})")
  yield _row("studies", f"{figures['studies']:,}, {figures['studies_per_chip']:g} a chip; "
             f"{figures['vocabulary']:,} words ({figures['vocabulary_source']})")
  if figures["train_reports"]:
    yield _row("consensus", f"asks {figures['train_reports']:,} training reports ({figures['train_reports_source']})")
  yield _row("compiled", f"in {figures['compile_seconds']:.0f} s, traced in {figures['lower_seconds']:.0f} s")
  yield ""
  yield f"HBM of a device, of {_bytes(hbm['available'])}"
  yield _row("  arguments", _bytes(hbm["arguments"]))
  yield _row("  outputs", f"{_bytes(hbm['outputs'])}, of which {_bytes(hbm['aliased'])} in the arguments' place")
  yield _row("  temporaries", _bytes(hbm["temporaries"]))
  yield _row("  program", _bytes(hbm["program"]))
  yield _row("  together", f"{_bytes(hbm['together'])}, {hbm['together'] / hbm['available']:.0%}")
  yield ""
  dearest = step["with_dearest_branches"]
  yield f"a {unit}, on each device"
  yield _row("  operations", f"{step['flops'] / 1e12:.3f} TFLOP of matrix products")
  yield _row("  HBM", f"{_bytes(step['hbm_bytes'])}: {_bytes(step['hbm_read'])} read, "
             f"{_bytes(step['hbm_written'])} written")
  yield _row("  dearest branches", f"{dearest['flops'] / 1e12:.3f} TFLOP, {_bytes(dearest['hbm_bytes'])}, if all "
             "conditionals took them (ties in the memory)")
  clock = bound["chip"]["clock_hz"]
  seconds = f", {1000 * step['estimated_cycles'] / clock:.3f} ms at {clock / 1e9:.2f} GHz" if clock else ""
  yield _row("  compiler's guess", f"{step['estimated_cycles'] / 1e6:.1f} million cycles{seconds}: its own estimate of "
             "each instruction, added up; kernels have none")
  if step["loops_of_unknown_length"]:
    yield _row("", f"{step['loops_of_unknown_length']} loops whose length depends on the data: "
               + ("counted as reports of the longest length need" if figures["what"] == "decode" else "counted once"))
  yield ""
  yield f"sent between devices in a {unit}, bytes of one device's results"
  for row in figures["collectives"]:
    yield _row(f"  {row['kind']}", f"{row['network'].upper()}  {row['count']:>5} x, {_bytes(row['bytes']):>9}, among "
               f"{row['members']}: {row['purpose']}")
  if not figures["collectives"]:
    yield "  nothing"
  yield ""
  yield f"time of a {unit} by published peaks ({bound['chip']['source']})"
  for name, field, of in (("compute", "compute_seconds", f"{bound['chip']['flops'] / 1e12:g} TFLOP/s"),
                          ("HBM", "hbm_seconds", f"{bound['chip']['hbm_bandwidth'] / 1e9:g} GB/s"),
                          ("ICI", "ici_seconds", f"{bound['chip']['ici_bandwidth'] / 1e9:.0f} GB/s out of a chip"),
                          ("DCN", "dcn_seconds", "a chip's share of its host's network")):
    if bound[field] is None:
      yield _row(f"  {name}", "no published figure")
    elif bound[field] or name != "DCN":
      binds = "  <- binds" if bound["binds"] == name else ""
      yield _row(f"  {name}", f"{1000 * bound[field]:9.3f} ms{binds:11} {of}")
  yield _row("  utilisation", f"at most {bound['utilisation']:.1%} of the peak: "
             f"{bound['model_flops'] / 1e12:.2f} TFLOP {bound['model_flops_counted']}")
  yield _row("  studies", f"at most {bound['studies_per_second_per_chip']:.1f} a second and chip")
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
