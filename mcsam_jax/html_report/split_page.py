"""The page of an evaluated split: what `page.write_page` wants, from a workdir, a split and what was written for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses

from etils import epath

from input_pipeline.splits import Split
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.explain.explanations import Slot, Why
from mcsam_jax.html_report.page import write_page
from mcsam_jax.inference.generate import GeneratedReport


@dataclasses.dataclass
class Reasons:
  """Why the reports of a split were written."""
  whys: Sequence[Why]             # of each
  slots: Sequence[Slot]           # what each slot of the memory stands for; [] without memory


@dataclasses.dataclass
class SplitStudies:
  """The studies of a split as the page wants them; records are read while it is written, one by one."""
  work: Workdir
  split: Split
  written: Sequence[GeneratedReport]
  rows: Sequence[Mapping]                             # the scores of each study
  whys: Sequence[Why] | None
  labels: Sequence[Mapping] | None                    # of each study's "reference" and "generated" report
  mentions: Callable | None                           # finds findings in a report

  def __len__(self) -> int:
    return len(self.written)

  def __iter__(self) -> Iterator[dict]:
    num_views = self.work.config.data.num_views
    for number, report in enumerate(self.written):
      record, reference = self.split[report.record], self.split.reports[report.record]
      study = {"id": record["id"], "generated": report.text, "reference": reference, "scores": self.rows[number],
               "images": record["images"][:num_views], "views": record["views"][:num_views]}
      if self.whys:
        study["why"] = self.whys[number]
      if self.labels:
        study |= {"labels": self.labels[number]["generated"], "reference_labels": self.labels[number]["reference"]}
      if self.labels and self.mentions:
        study |= {"mentions": self.mentions(report.text), "reference_mentions": self.mentions(reference)}
      yield study


def write_split_page(path: epath.Path, work: Workdir, split: Split, step: int, written: Sequence[GeneratedReport],
                     scores: Mapping, rows: Sequence[Mapping], reasons: Reasons | None, *,
                     labels: Sequence[Mapping] | None, findings: Sequence[str]) -> None:
  """Writes the page of `written`, one report a study of a split, in its order.

  Args:
    scores, rows, labels: as `scoring.score_reports` returns them.
    findings: those that the labels hold.
  """
  config = work.config
  studies = SplitStudies(work, split, written, rows, reasons and reasons.whys, labels,
                         mentions_by(config.eval.labeler))
  number = len(scores.get("models", [1]))
  write_page(path, scores, studies, title=f"Chest X-ray reports, {split.name} split",
             subtitle=f"{len(written):,} studies of {config.data.name}, " + (
                 f"{number} models together, the first" if number > 1 else "the checkpoint"
                 ) + f" of step {step}, {config.decode.search} search" + (
                     "; words and memory are explained by the first model" if number > 1 and reasons else ""),
             findings=findings, slots=reasons.slots if reasons else (), train_reports=work.open_split("train").reports,
             restricted=config.data.restricted, show_restricted=config.eval.html_report_restricted)


def mentions_by(labeler: str) -> Callable | None:
  """Returns what finds the mentions of findings in a report, for a value of eval.labeler; None where nothing can."""
  if labeler == "phantom":
    from input_pipeline.datasets.phantom.reports import find_mentions
    return find_mentions
  if labeler == "none":
    return None
  from mcsam_jax.labelers.rules import find_mentions
  return find_mentions
