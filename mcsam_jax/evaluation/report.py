"""`mcsam report`: generates reports of a user's own images, as text, as JSON, or as an HTML page.

An unreadable file gets one line on stderr, the other files get their reports, and the exit status is 2 at the end.
Compiled programs are cached for the next call. Nothing but the view is taken from the metadata of a file, so no name,
number or date of a patient reaches the output.
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
import json
import sys
import time

from etils import epath

from input_pipeline import user_images
from input_pipeline.prefetch import ordered_map
from input_pipeline.splits import Split
from input_pipeline.user_images import ImageFile, UserStudy
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.workdir import open_workdir, Workdir
from mcsam_jax.config import absolute_path
from mcsam_jax.errors import UnreadableFile, UserError
from mcsam_jax.evaluation import report_text
from mcsam_jax.files.outputs import check_output
from mcsam_jax.inference.compilation_cache import enable_compilation_cache
from mcsam_jax.inference.ood import load_or_fit_detector, OOD_FILE, OODDetector
from mcsam_jax.inference.predictor import Prediction, Predictor

PAGE_MARK = "Research software, not a medical device. Nothing on this page"       # in every HTML page
BATCH_SIZE = 4            # small, because most calls bring few studies; one compiled program serves any number of them
ONE_DEVICE = [f"--config.mesh.{axis}=1" for axis in ("data", "fsdp", "tensor")]


def report(workdir: str, paths: Sequence[str], step: int | None = None, overrides: Sequence[str] = (),
           grouping: str = "auto", as_json: bool = False, out: str = "", html: str = "", nbest: int = 1,
           write=print, log=lambda line: print(line, file=sys.stderr, flush=True)) -> dict:
  """Generates the reports of image files and folders; returns the content of the JSON output.

  Args:
    workdir: of the training run.
    paths: image files and folders.
    step: of the checkpoint; None: the best on val, or the last.
    overrides: `--config.field=value`, for fields that don't belong to the model.
    grouping: which files form one study, one of user_images.GROUPINGS.
    as_json: writes one JSON object instead of text.
    out: file that the text or JSON is written to; "": it is passed to `write`.
    html: HTML file to write as well; "": none.
    nbest: number of best reports per study in the text and the JSON; the page shows the best one alone.
    write: takes a text of the output.
    log: takes a line of progress or about an unreadable file.

  Raises:
    UserError: there is no image, or no checkpoint; or files are unreadable, after the other reports were written.
  """
  if html and not html.endswith((".html", ".htm")):
    raise UserError(f"--html {html}: expected a name that ends in .html")
  check_output("--out", out and absolute_path(out), report_text.NOTICE)
  check_output("--html", html and absolute_path(html), PAGE_MARK)
  start = time.monotonic()
  enable_compilation_cache()
  work = open_workdir(workdir, [*ONE_DEVICE, f"--config.decode.batch_size={BATCH_SIZE}", *overrides], log)
  found = user_images.find_studies(paths, grouping, work.config.data.max_image_pixels)
  if not found.studies and not found.unreadable:
    skipped = f" ({found.num_skipped} other files)" if found.num_skipped else ""
    raise UserError(f"no image in {', '.join(map(str, paths))}{skipped}: give PNG, JPEG or DICOM files, or folders "
                    "that contain them")
  output = {"notice": report_text.NOTICE, "workdir": str(workdir), "step": None, "search": None,
            "pretraining_data": work.pretraining_data, "ood_threshold": None, "notes": [], "studies": [],
            "unreadable": []}
  if found.num_skipped:
    output["notes"].append(f"{found.num_skipped} file(s) in the folders are not images")

  def add_unreadable(error: UnreadableFile) -> None:
    output["unreadable"].append({"file": error.path, "reason": error.reason})
    log(f"unreadable: {error}")

  for error in found.unreadable:
    add_unreadable(error)

  # Reports, each written as soon as its batch is decoded.
  results, predictor = [], None
  ood_detector = load_or_fit_detector(work, log) if found.studies else None
  studies = _read_studies(found.studies, work, ood_detector, add_unreadable)
  first_study = next(studies, None)
  if first_study is not None:                       # only now is the model worth loading
    predictor = Predictor(work, step, ood_detector, log, nbest)
    output |= {"step": predictor.loaded.step, "search": predictor.search,
               "ood_threshold": ood_detector and ood_detector.threshold}
    output["notes"] += predictor.notes
    if ood_detector is None:
      output["notes"].append(
          "images are not compared with the training images: the training records are not on this machine, and "
          f"{work.path / OOD_FILE}, which the first call on a machine with the records writes, can't be read")
    log(f"loaded step {predictor.loaded.step} in {time.monotonic() - start:.1f} s")
    start = time.monotonic()
    for result in predictor.predict(itertools.chain([first_study], studies)):
      results.append(result)
      output["studies"].append(describe_study(result, ood_detector, with_nbest=nbest > 1))
      if not as_json and not out:
        write(report_text.format_study(output["studies"][-1], len(results)))
    log(f"{len(results)} report(s) in {time.monotonic() - start:.1f} s")

  # Explanations, and the output as a whole.
  explanations = None
  explain_in_json = as_json and work.config.eval.explain
  if predictor is not None and (html or explain_in_json):
    from mcsam_jax.explain.user_images import explain_user_images  # not at the top, so that a text alone comes sooner
    explanations = explain_user_images(predictor, [result.study for result in results],
                                       [result.report for result in results])
    if explain_in_json:
      _add_explanations(output["studies"], *explanations)
  if results or as_json:                            # without any report, the unreadable files were all there is to say
    text = json.dumps(output, indent=2) if as_json else report_text.format_output(output, with_studies=bool(out))
    if out:
      atomic_write(absolute_path(out), text + "\n")
      log(f"reports: {absolute_path(out)}")
    else:
      write(text)
  if html and predictor is not None and explanations is not None:
    _write_html(absolute_path(html), predictor, results, *explanations)
    log(f"HTML report: {absolute_path(html)}")
  if output["unreadable"]:
    raise UserError(f"{len(output['unreadable'])} file(s) can't be read, see above; {len(results)} report(s) written")
  return output


def _read_studies(studies: Sequence[Sequence[ImageFile]], work: Workdir, ood_detector: OODDetector | None,
                  add_unreadable: Callable[[UnreadableFile], None]) -> Iterator[UserStudy]:
  """Yields the studies that have a readable image; `add_unreadable` takes the error of each file that has none."""
  default_view = ood_detector.first_view if ood_detector else "frontal"
  read = lambda files: user_images.read_study(files, work.config.data, default_view)
  for study in ordered_map(read, studies, work.config.train.host_threads):
    for error in study.unreadable:
      add_unreadable(error)
    if study.files:
      yield study


def describe_study(result: Prediction, ood_detector: OODDetector | None, with_nbest: bool = False) -> dict:
  """Returns the JSON object of a study; its files appear with the names that the user gave them and their views.

  With `with_nbest` it has the list `nbest` of the best reports, which begins with the report itself.
  """
  study, warnings = result.study, list(result.study.warnings)
  images = []
  for file, similarity in itertools.zip_longest([*study.files, *study.unused], result.similarity):
    images.append({"file": file.name, "view": file.view, "view_source": file.view_source, "used": file in study.files,
                   "similarity": None if similarity is None else round(similarity, 3)})
    if ood_detector is not None and similarity is not None and similarity < ood_detector.threshold:
      warnings.append(ood_detector.describe_outlier(file.name, similarity))
  reports = [{"report": each.text, "log_prob": None if each.log_prob is None else round(each.log_prob, 4)}
             for each in result.report.nbest]
  return {"images": images, **reports[0], "warnings": warnings, **({"nbest": reports} if with_nbest else {})}


def _add_explanations(studies: Sequence[dict], explanations: Sequence, slots: Sequence, train: Split | None) -> None:
  """Adds to the JSON object of each study the numbers that explain its report."""
  from mcsam_jax.explain.explanations import explanation_to_json
  train_ids = train.ids if train else ()
  for study, explanation in zip(studies, explanations):
    study["explanation"] = explanation_to_json(explanation, slots, train_ids)


def _write_html(path: epath.Path, predictor: Predictor, results: Sequence[Prediction], explanations: Sequence,
                slots: Sequence, train: Split | None) -> None:
  """Writes the HTML page: images, reports, findings, attention of each word and memory slots, but no scores.

  Similar training reports are shown if the training records are on this machine and not restricted.
  """
  from mcsam_jax.evaluation.eval_files import find_pointing_game
  from mcsam_jax.html_report.page import write_page
  from mcsam_jax.html_report.split_page import get_mention_finder
  from mcsam_jax.labelers.registry import make_labeler
  work = predictor.workdir
  studies = [{"id": ", ".join(file.name for file in result.study.files),
              "warnings": describe_study(result, predictor.ood_detector)["warnings"],
              "generated": result.report.text, "images": result.study.jpegs,
              "views": [file.view for file in result.study.files], "explanation": explanation}
             for result, explanation in zip(results, explanations)]
  labeler, find_mentions = make_labeler(work.config), get_mention_finder(work.config.eval.labeler)
  if labeler:
    for study, labels in zip(studies, labeler.label([result.report.text for result in results])):
      study["labels"] = labels
  if find_mentions:
    for study in studies:
      study["mentions"] = find_mentions(study["generated"])
  restricted = work.config.data.restricted
  write_page(path, None, studies, title="Chest X-ray reports",
             subtitle=f"{len(studies)} {'study' if len(studies) == 1 else 'studies'} from image files, "
                      f"step {predictor.loaded.step}, {predictor.search} search",
             findings=labeler.findings if labeler else (), slots=slots, train_reports=train.reports if train else (),
             pointing_game=find_pointing_game(work, predictor.loaded.step), restricted=restricted,
             show_restricted=restricted)
