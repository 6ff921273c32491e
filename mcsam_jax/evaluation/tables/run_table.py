"""`mcsam table`: the scores of several runs side by side, as mean and standard deviation over the runs of each arm.

Runs whose names differ only in a number at the end, such as iu-0, iu-1 and iu-2, are one arm: the same experiment with
several seeds.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import dataclasses
import io
import re
import shlex
import statistics

from etils import epath

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.files.untrusted import read_json
from mcsam_jax.html_report.scores import BASELINE_NAMES
from mcsam_jax.metrics.nlg import METRICS

FORMATS = ("markdown", "latex", "csv")
LABEL_COLUMNS = {"micro-F1": "micro", "macro-F1": "macro"}
_SEED = re.compile(r"^(.*?)(?:[-_.]?(?:seed)?[-_.]?\d+)$")


@dataclasses.dataclass(frozen=True)
class Run:
  """The scores of one run: a name, and the content of a scores file of `mcsam evaluate`."""
  name: str
  path: str
  scores: Mapping


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table: for each column the values of the runs, without those that are unknown."""
  name: str
  num_runs: int
  values: list[list[float]]


def make_run_table(paths: Sequence[str], *, split: str = "test", table_format: str = "markdown", baselines: bool = True,
                   out: str | None = None, log: Callable[[str], None] = print) -> str:
  """Returns the table of some runs, which is also logged or written to a file.

  Args:
    paths: workdirs, whose eval/SPLIT-*.json is read, or such files themselves.
    split: of the workdirs' evaluations.
    table_format: one of FORMATS.
    baselines: whether rows for the shuffled images and the model-free baselines of the first run follow.
    out: file to write; None: the table is logged.

  Raises:
    UserError: a file is missing or not one of `mcsam evaluate`, a workdir has several evaluations of the split, or the
      runs were not evaluated on the same studies in the same way.
  """
  if out:
    check_output("--out", out, "BLEU-1")
  runs = [read_run(path, split) for path in paths]
  _check_comparable(runs)
  arms: dict[str, list[Run]] = {}
  for run in runs:
    arms.setdefault(name_arm(run.name), []).append(run)
  if len(arms) == 1 and len(runs) > 1 and len({run.name for run in runs}) == 1:
    raise UserError(f"{runs[0].path} and {runs[1].path} have the same name: give runs of different names")
  columns = [metric.replace("_", "-") for metric in METRICS] + list(LABEL_COLUMNS)
  rows = [make_row(name if len(arm) > 1 else arm[0].name, [run.scores for run in arm]) for name, arm in arms.items()]
  if baselines:
    first = runs[0].scores
    parts = {"shuffled images": first.get("controls", {}).get("shuffled_images"),
             **{title: first.get("baselines", {}).get(key) for key, title in BASELINE_NAMES.items()}}
    rows += [make_row(name, [part]) for name, part in parts.items() if part]
  table = {"markdown": format_markdown, "latex": format_latex, "csv": format_csv}[table_format](columns, rows)
  if out:
    atomic_write(epath.Path(out), table)
    log(f"table: {out}")
  else:
    log(table.rstrip("\n"))
  return table


def read_run(path: str, split: str) -> Run:
  """Returns the run of a workdir or of a scores file; see `make_run_table`."""
  file = epath.Path(path)
  if file.is_dir():
    found = sorted(each for each in (file / "eval").glob(f"{split}-*.json")) if (file / "eval").exists() else []
    if not found:
      raise UserError(f"{path} has no evaluation of {split}: run `mcsam evaluate --workdir {shlex.quote(path)} --split "
                      f"{split}`")
    if len(found) > 1:
      raise UserError(f"{path} has several evaluations of {split}: name one of the files "
                      f"{', '.join(each.name for each in found)} in its folder eval")
    name, file = file.name, found[0]
  else:
    name = file.parent.parent.name if file.parent.name == "eval" else file.stem
  try:
    scores = read_json(file)
    nlg = scores["nlg"][_get_protocol(scores)]
    if not all(isinstance(nlg[metric], (int, float, type(None))) for metric in METRICS):
      raise ValueError("a score isn't a number")
    int(scores["num_studies"])
  except OSError as error:
    raise UserError(f"{file} can't be read ({error.strerror or error}): expected a workdir or a file of its folder eval"
                    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} holds no scores of `mcsam evaluate` ({type(error).__name__}: {error})") from error
  return Run(name, str(file), scores)


def name_arm(name: str) -> str:
  """Returns the name of a run without the number at its end: iu for iu-0, and iu_seed for iu_seed2."""
  match = _SEED.match(name)
  return match[1] if match and match[1] else name


def make_row(name: str, parts: Sequence[Mapping]) -> Row:
  """Returns the row of the scores of several runs, or of the same part of them."""
  values = []
  for metric in METRICS:
    values.append([value for part in parts if (value := _get_nlg(part).get(metric)) is not None])
  for average in LABEL_COLUMNS.values():
    values.append([part["labels"][average]["f1"] for part in parts if part.get("labels")])
  return Row(name, len(parts), values)


def format_markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a Markdown table: mean ± standard deviation."""
  lines = [["", *columns], ["---"] * (len(columns) + 1)]
  lines += [[_title(row), *(_format_cell(values, " ± ") for values in row.values)] for row in rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_latex(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a LaTeX tabular for the package booktabs."""
  escape = lambda text: re.sub(r"([&%$#_{}])", r"\\\1", text)
  lines = [" & ".join(["", *columns]) + r" \\", r"\midrule"]
  for row in rows:
    cells = [_format_cell(values, r" $\pm$ ") for values in row.values]
    lines.append(" & ".join([escape(_title(row)), *cells]) + r" \\")
  return "\n".join([rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", *lines, r"\bottomrule",
                    r"\end{tabular}", ""])


def format_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a CSV table with unrounded means, and standard deviations in columns of their own."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["name", "runs", *(f"{column} {part}" for column in columns for part in ("mean", "sd"))])
  for row in rows:
    cells = []
    for values in row.values:
      cells += [statistics.fmean(values) if values else "", statistics.stdev(values) if len(values) > 1 else ""]
    writer.writerow([row.name, row.num_runs, *cells])
  return text.getvalue()


def _title(row: Row) -> str:
  return f"{row.name} ({row.num_runs} runs)" if row.num_runs > 1 else row.name


def _format_cell(values: Sequence[float], plus_minus: str) -> str:
  if not values:
    return "-"
  mean = f"{statistics.fmean(values):.3f}"
  return f"{mean}{plus_minus}{statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _get_protocol(scores: Mapping) -> str:
  return scores.get("preparation", {}).get("main_protocol", "r2gen")


def _get_nlg(part: Mapping) -> Mapping:
  """Returns the n-gram metrics of scores, a control or a baseline."""
  nlg = part["nlg"]
  if "BLEU_1" in nlg:
    return nlg
  return nlg[_get_protocol(part) if _get_protocol(part) in nlg else "r2gen"]


def _check_comparable(runs: Sequence[Run]) -> None:
  """Raises UserError unless all runs were evaluated on the same studies, by the same protocol and labeler."""
  first = runs[0]
  for run in runs[1:]:
    for field, values in {
        "split": [each.scores.get("split") for each in (first, run)],
        "num_studies": [each.scores["num_studies"] for each in (first, run)],
        "labeler": [each.scores.get("labeler") for each in (first, run)],
        "protocol": [_get_protocol(each.scores) for each in (first, run)]}.items():
      if values[0] != values[1]:
        raise UserError(f"{first.path} and {run.path} can't be compared: {field} is {values[0]} and {values[1]}")
