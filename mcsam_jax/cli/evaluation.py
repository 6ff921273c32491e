"""Verbs that generate and score reports: evaluate, report, score, compare."""

import argparse

from mcsam_jax.cli.verb import add_step, add_workdir, require_at_least, Verb
from mcsam_jax.errors import UserError


def add_evaluate_arguments(parser):
  add_workdir(parser)
  parser.add_argument("--split", default="test", choices=["train", "val", "test"],
                      help="split to evaluate (default: test)")
  add_step(parser)
  parser.add_argument("--ensemble", nargs="+", default=[], metavar="WORKDIR",
                      help="further runs, such as other seeds, that generate each report together with --workdir")


def run_evaluate(args, overrides):
  from mcsam_jax.distributed import multihost
  multihost.initialize()
  from mcsam_jax import config as configs
  for workdir in (args.workdir, *args.ensemble):               # a wrong path is reported before the slow imports
    configs.read_config(configs.absolute_path(workdir) / "config.json", log=lambda line: None)
  from mcsam_jax.evaluation.evaluate import evaluate
  evaluate(args.workdir, args.split, args.step, overrides, args.ensemble)


def add_report_arguments(parser):
  add_workdir(parser)
  parser.add_argument("images", nargs="+", metavar="IMAGE",
                      help="PNG, JPEG, TIFF, BMP, WebP or DICOM files, or folders that contain them")
  add_step(parser)
  parser.add_argument("--group", default="auto", choices=["auto", "all", "folder", "file"],
                      help="which files form one study: auto: files of one DICOM study, of a folder with up to four "
                           "images, or whose names differ only in the view; all: all files; folder: the files of each "
                           "folder; file: each file")
  parser.add_argument("--nbest", type=int, default=1, metavar="N", help="number of best reports of each study, at most "
                      "decode.beam_size (decode.num_samples for mbr); the page shows the best one (default: 1)")
  parser.add_argument("--json", action="store_true", help="write one JSON object instead of text")
  parser.add_argument("--out", default="", metavar="FILE", help="write the text or JSON to FILE instead of stdout")
  parser.add_argument("--html", default="", metavar="FILE", help="also write an HTML page with images and explanations")


def run_report(args, overrides):
  require_at_least("--nbest", 1, args.nbest)
  from mcsam_jax.evaluation.report import report
  report(args.workdir, args.images, args.step, overrides, args.group, args.json, args.out, args.html, args.nbest)


def add_report_file_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what `score` and `compare` share: how files of reports are read and prepared."""
  add = parser.add_argument
  add("--train", metavar="FILE", help="training reports: give the vocabulary of the protocol r2gen, the share of "
      "copied reports and the constant baseline")
  add("--split", default="test", help="split to read from an annotation.json (default: test)")
  add("--cleaning", choices=["iu_xray", "mimic_cxr"], help="R2Gen's cleaning rules (default: iu_xray)")
  add("--threshold", type=int,
      help="words that are rarer in train become <unk> (R2Gen: 3 for IU X-Ray, 10 for MIMIC-CXR)")
  add("--prediction-field", metavar="NAME", help="field with the generated report; default: a common name")
  add("--reference-field", metavar="NAME", help="field with the reference report; default: a common name")
  add("--id-field", metavar="NAME", help="field with the study's id in all files; default: a common name")
  add("--max-length", type=int, help="tokens of a report under r2gen (R2Gen: 60 for IU X-Ray, 100 for MIMIC-CXR)")
  add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
  add("--json", metavar="FILE", help="write all results to FILE")


def add_score_arguments(parser):
  add = parser.add_argument
  add("--predictions", required=True, metavar="FILE", help="generated reports")
  add("--references", required=True, metavar="FILE", help="reference reports; R2Gen's annotation.json works")
  add("--labeler", default="rules", choices=["rules", "none"],
      help="how findings are read from reports (default: rules); CheXbert runs in `mcsam evaluate`")
  add("--radeval", default="", metavar="NAMES",
      help="additional scores of the package RadEval, such as radgraph,ratescore")
  add("--subjects", metavar="FILE", help="subject of each study; default: as the references say")
  add("--page", default="", metavar="FILE", help="also write an HTML page with tables and charts, and with "
      "--with-texts every study")
  add("--with-texts", action="store_true", help="let --json contain the most frequent and the constant reports, and "
      "--page every study; don't use it with data that must not be shared")
  add("--by-order", action="store_true", help="match predictions and references by their order, whatever their ids")
  add_report_file_arguments(parser)
  for file, text in (("train", "the training report; default: that of --reference-field"),
                     ("subject", "the subject in --subjects; default: a common name")):
    add(f"--{file}-field", metavar="NAME", help=f"field with {text}")
  for file in ("prediction", "reference", "subject"):
    add(f"--{file}-id-field", metavar="NAME", help=f"field with the id in the {file} file; default: --id-field")


def run_score(args, overrides):
  from mcsam_jax.evaluation.score_files import score_files
  score_files(args.predictions, args.references, train=args.train, split=args.split, labeler=args.labeler,
              subjects=args.subjects, cleaning=args.cleaning, threshold=args.threshold, max_length=args.max_length,
              prediction_field=args.prediction_field, reference_field=args.reference_field,
              train_field=args.train_field, subject_field=args.subject_field, id_field=args.id_field,
              prediction_id_field=args.prediction_id_field, reference_id_field=args.reference_id_field,
              subject_id_field=args.subject_id_field, by_order=args.by_order, radeval=args.radeval, seed=args.seed,
              json_path=args.json, page_path=args.page, with_texts=args.with_texts)


def add_compare_arguments(parser):
  add = parser.add_argument
  add("files", nargs="*", metavar="A B", help="eval/*.jsonl of two workdirs, or two files of generated reports")
  add("--a", nargs="+", default=[], metavar="FILE", help="runs of A, such as several seeds")
  add("--b", nargs="+", default=[], metavar="FILE", help="runs of B")
  add("--references", metavar="FILE", help="reference reports, if the files don't contain them")
  add("--protocol", choices=["r2gen", "clean", "raw"], help="default: r2gen if its vocabulary is known, else clean")
  add("--labeler", choices=["stored", "rules", "none"], help="default: the labels stored in the files, else rules")
  add_report_file_arguments(parser)


def run_compare(args, overrides):
  from mcsam_jax.evaluation.compare import compare
  a, b = args.a or args.files[:1], args.b or args.files[1:]
  if not a or not b or bool(args.a) != bool(args.b) or len(args.files) != (0 if args.a else 2):
    raise UserError("give two files, or the runs of each side: --a FILE... --b FILE...")
  compare(a, b, references=args.references, train=args.train, split=args.split, protocol=args.protocol,
          labeler=args.labeler, cleaning=args.cleaning, threshold=args.threshold, max_length=args.max_length,
          seed=args.seed, json_path=args.json, prediction_field=args.prediction_field,
          reference_field=args.reference_field, id_field=args.id_field)


def add_table_arguments(parser):
  add = parser.add_argument
  add("runs", nargs="+", metavar="RUN", help="workdirs, or files eval/*.json of them; runs whose names differ only in "
      "a number at the end are one row")
  add("--split", default="test", help="split of the evaluations (default: test)")
  add("--format", default="markdown", choices=["markdown", "latex", "csv"], help="default: markdown")
  add("--no-baselines", action="store_true", help="leave out the rows of the shuffled images and baselines, which are "
      "those of the first run")
  add("--out", metavar="FILE", help="write the table to FILE")


def run_table(args, overrides):
  from mcsam_jax.evaluation.tables.run_table import make_run_table
  make_run_table(args.runs, split=args.split, table_format=args.format, baselines=not args.no_baselines, out=args.out)


VERBS = (
    Verb("evaluate", "generate and score the reports of a split; --config.decode.field=value sets how",
         add_evaluate_arguments, run_evaluate, "mcsam evaluate --workdir runs/a --split test"),
    Verb("report", "generate reports of your own images; research software, not a medical device",
         add_report_arguments, run_report, "mcsam report --workdir runs/a chest_pa.png chest_lateral.png"),
    Verb("score", "score any model's reports, given as .jsonl, .json, .csv or .txt, with intervals and baselines",
         add_score_arguments, run_score, "mcsam score --predictions theirs.jsonl --references annotation.json --page "
         "theirs.html", takes_config_fields=False),
    Verb("compare", "is A better than B? Paired differences with intervals over the same studies",
         add_compare_arguments, run_compare, "mcsam compare runs/a/eval/test-1000.jsonl runs/b/eval/test-1000.jsonl",
         takes_config_fields=False),
    Verb("table", "the scores of several runs side by side: mean and standard deviation over seeds",
         add_table_arguments, run_table, "mcsam table runs/mcsam-0 runs/mcsam-1 runs/r2gencmn-0 runs/r2gencmn-1",
         takes_config_fields=False),
)
