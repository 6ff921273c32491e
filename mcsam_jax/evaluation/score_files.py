"""`mcsam score`: scores any model's reports, given as files, without a checkpoint, JAX or TensorFlow."""

import json

from input_pipeline import text
from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.provenance import describe_software
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import find_constants, find_label_constants
from mcsam_jax.evaluation.report_files import (
  match_studies,
  MissingSplit,
  read_reports,
  read_stored_labels,
  ReportTable,
  warn_of_copies,
)
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import score_reports, shuffle_hypotheses
from mcsam_jax.files.home import expand_home
from mcsam_jax.files.outputs import check_output
from mcsam_jax.html_report.score_page import write_score_page
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.labelers.rules import make_rules_labeler
from mcsam_jax.metrics.bootstrap import resample
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.protocols import UNKNOWN
from mcsam_jax.metrics.radeval import add_radeval, parse_score_names

R2GEN_DEFAULTS = {"iu_xray": (3, 60), "mimic_cxr": (10, 100)}     # cleaning -> R2Gen's word threshold, maximum length
LABELERS = ("rules", "none")
NUM_PERMUTATIONS = 10
MANY_UNKNOWN = 0.1            # fraction of <unk> words in the references above which a note warns


def score_files(predictions: str, references: str, *, train: str | None = None, split: str = "test",
                labeler: str = "rules", subjects: str | None = None, cleaning: str | None = None,
                threshold: int | None = None, max_length: int | None = None, prediction_field: str | None = None,
                reference_field: str | None = None, train_field: str | None = None, subject_field: str | None = None,
                id_field: str | None = None, prediction_id_field: str | None = None,
                reference_id_field: str | None = None, subject_id_field: str | None = None, by_order: bool = False,
                radeval: str = "", seed: int = 0, json_path: str | None = None, page_path: str | None = None,
                with_texts: bool = False, log=print) -> dict:
  """Scores a file of predictions against a file of references; returns the scores of `scoring.score_reports`.

  Args:
    predictions, references, train: files as `report_files` reads them. The training reports add the protocol r2gen,
      the constant baseline (the best on val where `train` has that split, else on train), the fraction of copies and
      the scores on references that aren't in train.
    split: which split of an annotation.json holds the references.
    labeler: rules | none.
    subjects: a file with the subject of each study, by id, or in the order of references without ids; None: the
      subjects of the references' file, or each study is a subject of its own.
    cleaning: iu_xray | mimic_cxr, R2Gen's rules for either data set; None: iu_xray.
    threshold: words that occur less often in train are <unk> under r2gen; None: R2Gen's for `cleaning`.
    max_length: maximum report length under r2gen in words, the end of the report counted as one; None: R2Gen's for
      `cleaning`.
    prediction_field, reference_field, train_field, subject_field: the field of each file's texts, or subjects; None:
      as `report_files` finds it, but the training reports are in the field of the references if that is given.
    id_field: the field of the ids in all files; None: as `report_files` finds it.
    prediction_id_field, reference_id_field, subject_id_field: the field of one file's ids; None: `id_field`.
    by_order: matches predictions and references by their order, whatever their ids; without it, only files without ids
      are matched so, and the first line warns of it.
    radeval: names of further scores, separated by commas (see metrics/radeval.py).
    seed: of the resampling and of the permutations.
    json_path: where the scores are written.
    page_path: where an HTML page is written; it shows the studies only with `with_texts`.
    with_texts: includes the most common report and the constant ones. Not for data that must not be shared.

  Raises:
    UserError: a file can't be used, or a value is out of range.
  """
  # The reports, one prediction per reference.
  check_output("--json", json_path or "", '"predictions":', '"preparation":')
  cleaning, threshold, max_length = check_preparation(cleaning, threshold, max_length)
  json_path, page_path = (path and str(expand_home(path)) for path in (json_path, page_path))
  radeval_names = parse_score_names(radeval)
  if page_path and not page_path.endswith((".html", ".htm")):
    raise UserError(f"--page {page_path}: expected a name that ends in .html")
  reference_table = read_reports(references, "references", split, reference_field, reference_id_field or id_field)
  prediction_table = read_reports(predictions, "predictions", split, prediction_field, prediction_id_field or id_field)
  order, order_note = _match_predictions(reference_table, prediction_table, by_order)
  if order_note and not by_order:
    log(f"WARNING: {order_note['order']}; --by-order says that this is intended, --reference-id-field "
        "and --prediction-id-field name fields with ids")
  log(f"predictions: field {prediction_table.text_field} of {prediction_table.path}; references: field "
      f"{reference_table.text_field} of {reference_table.path}")
  hypotheses = [prediction_table.texts[row] for row in order]
  notes = {**reference_table.notes, **prediction_table.notes, **order_note,
           **warn_of_copies(reference_table, prediction_table, order)}
  ids = reference_table.ids or prediction_table.ids or reference_table.locations
  study_subjects = _read_subjects(reference_table, subjects, split, subject_field, subject_id_field or id_field)

  # Their scores.
  train_reports = val_reports = tokenizer = constants = None
  report_labeler = make_labeler(labeler)
  with Meteor() as meteor:
    meteor.start()                                    # Java starts while the constants are searched for
    if train:
      train_reports, val_reports = _read_train_and_val(train, train_field or reference_field, id_field)
      tokenizer = WordTokenizer.train(train_reports, cleaning, threshold, False)
      log(f"searching the constant report that is best on {'val' if val_reports else 'train'}, for each metric (a "
          "minute or more)")
      inputs = train_reports, val_reports or train_reports, tokenizer, cleaning, max_length
      constants = find_constants(*inputs, meteor)
      if report_labeler:
        constants |= find_label_constants(*inputs, report_labeler)
    scores, rows, labels = score_reports(
        ids=ids, references=reference_table.texts, hypotheses=hypotheses,
        shuffled_hypotheses=shuffle_hypotheses(hypotheses, NUM_PERMUTATIONS, seed), train_reports=train_reports,
        initial_features=None, constants=constants, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length,
        labeler=report_labeler, restricted=not with_texts, seed=seed, subjects=study_subjects, meteor=meteor)
  if radeval_names:
    add_radeval(scores, rows, radeval_names, reference_table.texts, hypotheses, resample(study_subjects or ids, seed),
                log)

  # What a reader of the scores has to know.
  if train_reports is None:
    notes |= {"r2gen": "left out: its references need the vocabulary of the training reports; give --train",
              "constant": "left out, like copies of training reports: give --train"}
  else:
    scores["baselines"]["constant"]["chosen_on"] = "val" if val_reports else "train"
    if not val_reports:
      notes["constant"] = f"chosen on the training reports themselves: {train} has no val split"
      for chosen in filter(None, scores["baselines"]["constant"]["chosen_for"].values()):
        chosen["train_score"] = chosen.pop("val_score")
    unk_fraction = scores["preparation"]["reference_unk_fraction"]
    if unk_fraction > MANY_UNKNOWN:
      notes["r2gen"] = (f"{unk_fraction:.0%} of the references' words are {UNKNOWN}, because they occur less than "
                        f"{threshold} times in the {len(train_reports)} training reports: --threshold 1 keeps every "
                        "word that occurs there")
  if labeler == "rules" and read_stored_labels(prediction_table.rows[0]):
    notes["labels"] = (f"predicted again by the rules: the labels that `mcsam evaluate` stored in "
                       f"{prediction_table.path} may come from another labeler")
  scores["notes"] |= notes
  scores = {"predictions": str(predictions), "references": str(references),
            "fields": {"predictions": prediction_table.text_field, "references": reference_table.text_field},
            **({"train": str(train), "threshold": threshold} if train else {}), "labeler": labeler,
            "software": describe_software(), **scores}
  log(format_table(scores))
  if json_path:
    atomic_write(json_path, json.dumps(scores, indent=2) + "\n")
    log(f"scores: {json_path}")
  if page_path:
    write_score_page(page_path, predictions, ids, reference_table.texts, hypotheses, scores, rows, labels,
                     report_labeler.findings if report_labeler else (), with_texts)
    log(f"page: {page_path}")
  return scores


def _match_predictions(references: ReportTable, predictions: ReportTable, by_order: bool
                       ) -> tuple[list[int], dict[str, str]]:
  """Returns for each reference the row of its prediction, and a note if they are matched by order.

  Raises:
    UserError: see `match_studies`; or they should be matched by order, although their ids are the same in another one.
  """
  without_ids = next((table.path for table in (references, predictions) if table.ids is None), None)
  if by_order:
    if (references.ids is not None and predictions.ids is not None and references.ids != predictions.ids
        and set(references.ids) == set(predictions.ids)):
      raise UserError(f"--by-order: {references.path} and {predictions.path} have the same ids in another order: leave "
                      "--by-order out, so that reports are matched by id")
    return (match_studies(references._replace(ids=None), predictions),
            {"order": "reports are matched by their order in both files, as --by-order says"})
  note = {"order": f"{without_ids} has no ids: reports are matched by their order in both files"} if without_ids else {}
  return match_studies(references, predictions), note


def check_preparation(cleaning: str | None, threshold: int | None, max_length: int | None) -> tuple[str, int, int]:
  """Returns cleaning, word threshold and maximum length, with R2Gen's values for those that are None.

  Raises:
    UserError: the cleaning is unknown, or a number is too small.
  """
  cleaning = cleaning or "iu_xray"
  if cleaning not in text.RULES:
    raise UserError(f"--cleaning {cleaning}: expected one of {', '.join(text.RULES)}")
  default_threshold, default_max_length = R2GEN_DEFAULTS[cleaning]
  threshold = default_threshold if threshold is None else threshold
  max_length = default_max_length if max_length is None else max_length
  if threshold < 1:
    raise UserError(f"--threshold {threshold}: expected at least 1, which keeps every word of train")
  if max_length < 2:
    raise UserError(f"--max-length {max_length}: expected at least 2, one word and the end of the report")
  return cleaning, threshold, max_length


def make_labeler(name: str) -> Labeler | None:
  """Returns the labeler that `--labeler` names; None for `none`."""
  if name not in LABELERS:
    raise UserError(f"--labeler {name}: expected one of {', '.join(LABELERS)}")
  return make_rules_labeler() if name == "rules" else None


def _read_train_and_val(path: str, reference_field: str | None, id_field: str | None
                        ) -> tuple[list[str], list[str] | None]:
  """Returns the training reports and the val reports, None unless the file is an annotation.json with that split."""
  train = read_reports(path, "references", "train", reference_field, id_field)
  if not train.locations[0].endswith(" of train"):
    return train.texts, None
  try:
    return train.texts, read_reports(path, "references", "val", reference_field, id_field).texts
  except MissingSplit:
    return train.texts, None


def _read_subjects(references: ReportTable, path: str | None, split: str, field: str | None, id_field: str | None
                   ) -> list[str] | None:
  """Returns the subject of each study from the file at `path`, or else from the references; None if unknown."""
  if path is None:
    return references.subjects
  table = read_reports(path, "subjects", split, field, id_field)
  if references.ids and table.ids is None:
    raise UserError(f"{table.path} has no ids but {references.path} has: add them, or name their field with "
                    "--subject-id-field or --id-field; matched by order alone, studies could get the subjects of other "
                    "studies")
  return [table.texts[row] for row in match_studies(references, table, "subject")]
