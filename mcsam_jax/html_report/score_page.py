"""Writes the HTML report of scored files: scores, and the reports of each study, without images or explanations."""

from collections.abc import Mapping, Sequence

from etils import epath

from mcsam_jax.html_report.page import write_page
from mcsam_jax.labelers.rules import find_mentions


def write_score_page(path: epath.PathLike, predictions: str, ids: Sequence[str], references: Sequence[str],
                     hypotheses: Sequence[str], scores: Mapping, study_scores: Sequence[Mapping],
                     labels: Sequence[Mapping] | None, findings: Sequence[str], with_texts: bool) -> None:
  """Writes the page of B generated reports.

  Args:
    path: the file, *.html.
    predictions: the file of generated reports, for the title.
    ids, references, hypotheses: one per study.
    scores, study_scores, labels: as `scoring.score_reports` returns them.
    findings: the findings in `labels`, as the rules read them.
    with_texts: shows the studies; otherwise the page has scores alone.
  """
  studies = []
  if with_texts:
    for index, (name, reference, hypothesis) in enumerate(zip(ids, references, hypotheses)):
      study = {"id": name, "reference": reference, "generated": hypothesis, "scores": study_scores[index],
               "images": [], "views": []}
      if labels:
        study |= {"labels": labels[index]["generated"], "reference_labels": labels[index]["reference"],
                  "mentions": find_mentions(hypothesis), "reference_mentions": find_mentions(reference)}
      studies.append(study)
  name = epath.Path(predictions).name
  write_page(path, scores, studies, title=f"Chest X-ray reports of {name}", findings=findings,
             subtitle=f"{len(ids):,} studies, scored by mcsam score",
             how_to_show_studies="" if with_texts else "This page shows no reports; --with-texts adds them.")
