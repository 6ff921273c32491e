"""Writes the HTML report of an evaluated split."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses

from etils import epath

from input_pipeline.splits import Split
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.explain.explanations import Explanation
from mcsam_jax.explain.slots import SlotDescription
from mcsam_jax.html_report.page import write_page
from mcsam_jax.inference.generate import GeneratedReport


@dataclasses.dataclass
class ReportExplanations:
  """The explanations of the reports of a split."""
  per_report: Sequence[Explanation]          # one per report, in their order
  slots: Sequence[SlotDescription]           # one per memory slot; [] without memory


@dataclasses.dataclass
class SplitStudies:
  """The studies of a split, as `page.write_page` takes them; each record is read when it is iterated over."""
  work: Workdir
  split: Split
  reports: Sequence[GeneratedReport]
  study_scores: Sequence[Mapping]                     # {metric: score} of each study
  explanations: Sequence[Explanation] | None
  labels: Sequence[Mapping] | None                    # {"reference", "generated"} of each study
  find_mentions: Callable | None                      # report -> its mentions of findings
  find_differences: Callable | None                   # reference, report -> {finding: how its details differ}

  def __len__(self) -> int:
    return len(self.reports)

  def __iter__(self) -> Iterator[dict]:
    num_views = self.work.config.data.num_views
    for index, report in enumerate(self.reports):
      record, reference = self.split[report.record], self.split.reports[report.record]
      study = {"id": record["id"], "generated": report.text, "reference": reference,
               "scores": self.study_scores[index], "images": record["images"][:num_views],
               "views": record["views"][:num_views]}
      if self.explanations:
        study["explanation"] = self.explanations[index]
      if self.labels:
        study |= {"labels": self.labels[index]["generated"], "reference_labels": self.labels[index]["reference"]}
      if self.labels and self.find_mentions:
        study |= {"mentions": self.find_mentions(report.text), "reference_mentions": self.find_mentions(reference)}
      if self.find_differences:
        study["differences"] = self.find_differences(reference, report.text)
      yield study


def write_split_page(path: epath.Path, work: Workdir, split: Split, step: int, reports: Sequence[GeneratedReport],
                     scores: Mapping, study_scores: Sequence[Mapping], explanations: ReportExplanations | None, *,
                     labels: Sequence[Mapping] | None, findings: Sequence[str]) -> None:
  """Writes the page of the generated reports of a split.

  Args:
    step: of the checkpoint of the first model.
    reports: one per study.
    scores, study_scores, labels: as `scoring.score_reports` returns them.
    explanations: None leaves out attention maps, memory slots and similar training reports.
    findings: the findings in `labels`.
  """
  config = work.config
  studies = SplitStudies(work, split, reports, study_scores, explanations and explanations.per_report, labels,
                         get_mention_finder(config.eval.labeler), get_difference_finder(config.eval.labeler))
  num_models = len(scores.get("models", [1]))
  subtitle = (f"{len(reports):,} studies of {config.data.name}, "
              + (f"ensemble of {num_models} models, the first" if num_models > 1 else "checkpoint")
              + f" at step {step}, {config.decode.search} search")
  if num_models > 1 and explanations:
    subtitle += "; explanations are those of the first model"
  write_page(path, scores, studies, title=f"Chest X-ray reports, {split.name} split", subtitle=subtitle,
             findings=findings, slots=explanations.slots if explanations else (),
             train_reports=work.open_split("train").reports, pointing_game=scores.get("pointing_game"),
             restricted=config.data.restricted, show_restricted=config.eval.html_report_restricted)


def get_mention_finder(labeler: str) -> Callable | None:
  """Returns the function that finds mentions of findings in a report; None without a labeler.

  Args:
    labeler: a value of eval.labeler. CheXbert doesn't locate findings, so the rules find their mentions.
  """
  if labeler == "phantom":
    from input_pipeline.datasets.phantom.reports import find_mentions
    return find_mentions
  if labeler == "none":
    return None
  from mcsam_jax.labelers.rules import find_mentions
  return find_mentions


def get_difference_finder(labeler: str) -> Callable[[str, str], dict[str, str]] | None:
  """Returns the function that describes how the details of stated findings differ; None where that isn't known.

  Args:
    labeler: a value of eval.labeler; only the grammar of phantom reports tells side, size and severity.
  """
  if labeler != "phantom":
    return None
  from input_pipeline.datasets.phantom.attributes import compare_attributes, describe_differences
  return lambda reference, generated: describe_differences(compare_attributes(reference, generated))
