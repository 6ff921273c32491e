"""`mcsam report`: the reports of a user's own images, as text, as JSON, or as a page to look at.

What can't be read is refused in a line on stderr, the others get their reports, and the status is 2 at the end.
Compiled programs are kept for the next call (`keep_programs`). Of what is in the files besides pixels nothing is
written but the view.
"""

from collections.abc import Iterator, Sequence
import hashlib
import itertools
import json
import os
from pathlib import Path
import platform
import sys
import time

from etils import epath
import jax

from input_pipeline import user_images
from input_pipeline.prefetch import ordered_map
from input_pipeline.splits import Split
from input_pipeline.user_images import ImageFile, UserStudy
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.workdir import open_workdir, Workdir
from mcsam_jax.config import absolute_path
from mcsam_jax.errors import UnreadableFile, UserError
from mcsam_jax.evaluation import report_text
from mcsam_jax.explain.user_images import reasons_of
from mcsam_jax.inference.ood import FALSE_ALARM_RATE, load_or_learn, OODDetector
from mcsam_jax.inference.predictor import Predictor, Result

BATCH = 4                 # studies written together: few, as most calls bring few, and one program serves any number
Reasons = tuple[Sequence, Sequence, Split | None]         # of reasons_of
ONE_DEVICE = [f"--config.mesh.{axis}=1" for axis in ("data", "fsdp", "tensor")]


def report(workdir: str, given: Sequence[str], step: int | None = None, overrides: Sequence[str] = (),
           grouping: str = "auto", as_json: bool = False, out: str = "", page: str = "", write=print,
           log=lambda line: print(line, file=sys.stderr, flush=True)) -> dict:
  """Writes the reports of image files and folders; returns what the JSON holds.

  Args:
    step: of the checkpoint; None: the best on val, or the last.
    overrides: `--config.field=value` of fields that don't belong to the model.
    grouping: which files are one study, one of user_images.GROUPINGS.
    as_json: one object instead of text.
    out: file that takes the text or JSON; "": `write` does.
    page: HTML file to write besides; "": none.
    write, show: take a text of the result; a line of progress or of refusal.

  Raises:
    UserError: no image was found, or some can't be read (the reports of the others are out by then); no checkpoint.
  """
  if page and not page.endswith((".html", ".htm")):
    raise UserError(f"--page {page}: it is a page for a browser, name it .html")
  started = time.monotonic()
  keep_programs()
  work = open_workdir(workdir, [*ONE_DEVICE, f"--config.decode.batch_size={BATCH}", *overrides], log)
  found = user_images.find_studies(given, grouping)
  if not found.studies and not found.unreadable:
    others = f" ({found.num_skipped} other files)" if found.num_skipped else ""
    raise UserError(f"no image in {', '.join(map(str, given))}{others}: give PNG, JPEG or DICOM files, or folders of "
                    "them")
  whole = {"notice": report_text.NOTICE, "workdir": str(workdir), "step": None, "search": None,
           "pretraining_data": work.pretraining_data, "usual_likeness": None, "notes": [], "studies": [], "refused": []}
  if found.num_skipped:
    whole["notes"].append(f"{found.num_skipped} file(s) in the folders are no images")

  def refuse(error: UnreadableFile) -> None:
    whole["refused"].append({"file": error.path, "reason": error.reason})
    log(f"refused {error}")

  for error in found.unreadable:
    refuse(error)
  results, model, ood_detector = [], None, load_or_learn(work, log) if found.studies else None
  studies = readable(found.studies, work, ood_detector, refuse)
  for first in studies:                             # the model is loaded once there is something to write about
    model = Predictor(work, step, ood_detector, log)
    whole |= {"step": model.member.step, "search": model.search, "usual_likeness": ood_detector and ood_detector.usual}
    whole["notes"] += model.notes + ([] if ood_detector else [
        f"whether an image is like those of training can't be told: their records aren't on this machine, nor is "
        f"{work.path / 'familiar.npz'}, which the first call where they are leaves"])
    log(f"loaded step {model.member.step} in {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    for result in model.reports(itertools.chain([first], studies)):
      results.append(result)
      whole["studies"].append(as_dict(result, ood_detector))
      if not as_json and not out:
        write(report_text.of_study(whole["studies"][-1], len(results)))
    log(f"{len(results)} report(s) in {time.monotonic() - started:.1f} s")

  reasons = None
  if results and (page or (as_json and work.config.eval.explain)):
    reasons = reasons_of(model, [result.study for result in results], [result.written for result in results])
  if reasons and as_json and work.config.eval.explain:
    add_why(whole["studies"], reasons)
  if results or as_json:                            # else there is nothing to write but refusals, which have been told
    text = json.dumps(whole, indent=2) if as_json else report_text.of_all(whole, with_studies=bool(out))
    if out:
      atomic_write(absolute_path(out), text + "\n")
      log(f"reports: {absolute_path(out)}")
    else:
      write(text)
  if page and results:
    write_page(absolute_path(page), model, results, reasons, log)
  if whole["refused"]:
    raise UserError(f"{len(whole['refused'])} file(s) can't be read, see above; {len(results)} report(s) written")
  return whole


def readable(found: Sequence[Sequence[ImageFile]], work: Workdir, ood_detector: OODDetector | None, refuse) -> Iterator[UserStudy]:
  """Yields the studies of which a film can be read; `refuse` takes the Unreadable of each that can't."""
  alone = ood_detector.first_view if ood_detector else "frontal"
  read = lambda films: user_images.read_study(films, work.config.data, alone)
  for study in ordered_map(read, found, work.config.train.host_threads):
    for error in study.unreadable:
      refuse(error)
    if study.files:
      yield study


def as_dict(result: Result, ood_detector: OODDetector | None) -> dict:
  """Returns what the JSON says of a study; of its files nothing but their names, as the user gave them, and views."""
  study, warnings = result.study, list(result.study.warnings)
  films = []
  for film, similarity in itertools.zip_longest([*study.files, *study.unused], result.similarity):
    films.append({"file": film.name, "view": film.view, "view_told_by": film.view_source, "shown": film in study.files,
                  "likeness": None if similarity is None else round(similarity, 3)})
    if similarity is not None and similarity < ood_detector.usual:
      warnings.append(f"{film.name} doesn't look like a chest X-ray of the kind that the model was trained on "
                      f"(likeness {similarity:.2f}; {1 - FALSE_ALARM_RATE:.1%} of the val images reach {ood_detector.usual:.2f})")
  return {"images": films, "report": result.written.text, "log_prob": round(result.written.log_prob, 4),
          "warnings": warnings}


def add_why(studies: Sequence[dict], reasons: Reasons) -> None:
  """Adds to what the JSON says of each study why its report was written, in numbers."""
  from mcsam_jax.explain.explanations import in_numbers
  whys, slots, train = reasons
  train_ids = train.ids if train else ()
  for study, why in zip(studies, whys):
    study["why"] = in_numbers(why, slots, train_ids)


def write_page(path: epath.Path, model: Predictor, results: Sequence[Result], reasons: Reasons, log) -> None:
  """Writes the page of the reports: images, findings, where each word looked, what the memory recalled; no scores.

  What training reports recall the same is shown where the records are on this machine and aren't restricted.
  """
  from mcsam_jax.html_report.page import write_page as write_html
  from mcsam_jax.html_report.split_page import mentions_by
  from mcsam_jax.labelers.registry import make_labeler
  work, written = model.work, [result.written for result in results]
  studies = []
  for result in results:
    studies.append({"id": ", ".join(film.name for film in result.study.files),
                    "warnings": as_dict(result, model.ood_detector)["warnings"], "generated": result.written.text,
                    "images": result.study.jpegs, "views": [film.view for film in result.study.files]})
  labeler, mentions = make_labeler(work.config), mentions_by(work.config.eval.labeler)
  if labeler:
    for study, labels in zip(studies, labeler.label([report.text for report in written])):
      study["labels"] = labels
  if mentions:
    for study in studies:
      study["mentions"] = mentions(study["generated"])
  whys, slots, train = reasons
  for study, why in zip(studies, whys):
    study["why"] = why
  restricted = work.config.data.restricted
  write_html(path, None, studies, title="Chest X-ray reports",
             subtitle=f"{len(studies)} {'study' if len(studies) == 1 else 'studies'} of one's own, "
                      f"step {model.member.step}, {model.search} search",
             findings=labeler.findings if labeler else (), slots=slots, train_reports=train.reports if train else (),
             restricted=restricted, show_restricted=restricted)
  log(f"page: {path}")


def keep_programs() -> None:
  """Lets JAX keep compiled programs between calls, unless the user has said where (JAX_COMPILATION_CACHE_DIR).

  They hold no images and no reports. What was compiled for one processor may not run on another that shares the home
  folder, so each kind has a folder of its own.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  try:
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line for line in facts if line.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    processor = platform.processor()
  kind = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:10]
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  jax.config.update("jax_compilation_cache_dir", str(Path(home) / "mcsam" / f"xla-{kind}"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
