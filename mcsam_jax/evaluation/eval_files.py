"""The files that `mcsam evaluate` writes below WORKDIR/eval: their names, the table of reports, the constant reports.

  SPLIT-STEP.json             the scores (see `scoring.score_reports`)
  SPLIT-STEP.jsonl            one line per study: id, subject, reference and generated report, scores, labels of both
                              reports; with `eval.explain` also the explanation of the report (explain/explanations.py)
  SPLIT-STEP.unscored.jsonl   the reports alone, until they are scored
  SPLIT-STEP.html             scores and reports as a page, with attention maps and memory slots (html_report/)
  constant.json               the constant report that is best on val for each metric; searched once per workdir
  constant-LABELER.json       the same for micro- and macro-F1 of the findings that a labeler reads

An ensemble writes SPLIT-STEP-with-OTHER-OTHER.* into its first workdir, OTHER being the names of the other workdirs.
Fields of `decode` and `eval` that differ from the workdir's config are part of the name: SPLIT-STEP-beam_size=1.*
"""

from collections.abc import Callable, Sequence
import json
import shutil

from etils import epath

from input_pipeline.splits import Split
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.evaluation.baselines import find_constants, find_label_constants, LABEL_METRICS
from mcsam_jax.files.untrusted import read_json
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.registry import get_true_labels
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.nlg import METRICS


def make_result_path(workdirs: Sequence[Workdir], split: Split, step: int, suffix: str) -> epath.Path:
  """Returns the path of a result; its name holds the split, the step, the ensemble and the overridden fields."""
  ensemble = ["with", *(workdir.path.name for workdir in workdirs[1:])] if len(workdirs) > 1 else []
  name = "-".join([split.name, str(step), *ensemble, *workdirs[0].inference_overrides])
  return workdirs[0].path / "eval" / f"{name}.{suffix}"


def find_pointing_game(workdir: Workdir, step: int) -> dict | None:
  """Returns the pointing game of a checkpoint from an evaluation of it, test before val before train; None if none."""
  for split in ("test", "val", "train"):
    try:
      scores = json.loads((workdir.path / "eval" / f"{split}-{step}.json").read_text())
    except (FileNotFoundError, ValueError):
      continue
    if isinstance(scores, dict) and scores.get("pointing_game"):
      return scores["pointing_game"]
  return None


def list_subjects(split: Split) -> list[str]:
  """Returns the subject of each record; a record without one is a subject of its own."""
  return [record["subject_id"] or record["id"] for record in split.metadata]


def write_report_table(path: epath.Path, split: Split, reports: Sequence[GeneratedReport],
                       results: Sequence[dict] | None = None) -> None:
  """Writes one line per study.

  Args:
    path: the .jsonl file.
    reports: one per study of the split, in its order.
    results: what else each line holds, such as scores; None before scoring.
  """
  lines = [{"id": name, "subject": subject, "reference": reference, "generated": report.text,
            "log_prob": report.log_prob, **({"finding_probs": report.finding_probs} if report.finding_probs else {}),
            **({"head_probs": report.head_probs} if report.head_probs else {}),
            **result}
           for name, subject, reference, report, result in zip(
               split.ids, list_subjects(split), split.reports, reports, results or [{}] * len(reports))]
  atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines))


def load_or_find_constants(workdir: Workdir, labeler: Labeler | None, log=print, meteor: Meteor | None = None) -> dict:
  """Returns the constant reports, searched on val the first time and read from the workdir afterwards."""
  train, val, config = workdir.open_split("train"), workdir.open_split("val"), workdir.config
  inputs = train.reports, val.reports, workdir.tokenizer, config.data.cleaning, config.tokenizer.max_length

  def load_or_find(name: str, metrics: Sequence[str], find: Callable[[], dict],
                   is_complete: Callable[[dict], bool] = bool) -> dict:
    path = workdir.path / "eval" / f"{name}.json"
    constants = _read_constants(path, metrics)
    if not constants or not is_complete(constants):
      constants = find()
      atomic_write(path, json.dumps(constants, indent=2) + "\n")
    return constants

  def find_for_metrics() -> dict:
    log("searching the constant report that is best on val, for each metric (once per workdir)")
    return find_constants(*inputs, meteor)

  def includes_meteor(constants: dict) -> bool:
    return bool(constants["METEOR"]) or not shutil.which("java")      # Java may have been installed since

  constants = load_or_find("constant", METRICS, find_for_metrics, includes_meteor)
  if labeler:
    constants |= load_or_find(f"constant-{labeler.name}", LABEL_METRICS, lambda: find_label_constants(
        *inputs, labeler, get_true_labels(labeler, config, val)))
  return constants


def _read_constants(path: epath.Path, metrics: Sequence[str]) -> dict | None:
  """Returns the constant reports in a file for each of `metrics`; None if it is missing or damaged."""
  try:
    constants = read_json(path)
  except (OSError, ValueError):
    return None
  is_valid = isinstance(constants, dict) and set(constants) == set(metrics) and all(
      chosen is None or isinstance(chosen, dict) and isinstance(chosen.get("report"), str)
      and isinstance(chosen.get("val_score"), (int, float)) for chosen in constants.values())
  return constants if is_valid else None
