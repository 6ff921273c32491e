"""Verbs that prepare data and train: demo, prepare, data, init-memory, train."""

from pathlib import Path

from mcsam_jax.cli.verb import add_config, add_workdir, print_next_command, require_at_least, Verb
from mcsam_jax.errors import UserError


def add_demo_arguments(parser):
  add_workdir(parser, required=False, default="runs/demo")


def run_demo(args, overrides):
  from mcsam_jax.demo.demo import demo
  demo(args.workdir, overrides)


def add_prepare_arguments(parser):
  add_config(parser)
  parser.add_argument("--show-ids", action="store_true",
                      help="let messages about a restricted data set name its records; without it they only count them")


def run_prepare(args, overrides):
  from input_pipeline.builder.prepare import prepare
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.bucket_access import check_bucket_private
  config = load_config(args.config, [*overrides, *["--config.prepare.show_ids=true"] * args.show_ids])
  check_bucket_private(config)
  prepare(config)
  print_next_command("train", "--config", args.config, "--workdir", f"runs/{Path(args.config).stem}",
                     overrides=overrides)


def add_data_arguments(parser):
  add_config(parser)
  parser.add_argument("--split", default="train", help="train, val or test (default: %(default)s)")
  parser.add_argument("--out", default="contact_sheet.png", help="PNG to write (default: %(default)s)")
  parser.add_argument("--batches", type=int, default=10, help="batches, one per row (default: %(default)s)")
  parser.add_argument("--studies", type=int, default=4, help="studies to show of each batch (default: %(default)s)")
  parser.add_argument("--step", type=int, default=0, help="training steps before the first row (default: %(default)s)")


def run_data(args, overrides):
  require_at_least("--batches", 1, args.batches)
  require_at_least("--studies", 1, args.studies)
  require_at_least("--step", 0, args.step)
  from mcsam_jax.config import absolute_path, load_config
  from mcsam_jax.contact_sheet import write_contact_sheet
  write_contact_sheet(load_config(args.config, overrides), args.split, absolute_path(args.out), args.batches,
                      args.studies, args.step)


def add_init_memory_arguments(parser):
  add_config(parser)
  add_workdir(parser)


def run_init_memory(args, overrides):
  from mcsam_jax.checkpoints.workdir import init_memory
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.bucket_access import check_bucket_private
  config = load_config(args.config, overrides)
  check_bucket_private(config, args.workdir)
  if config.memory_init.kind == "random":
    raise UserError("memory_init.kind=random needs no memory bank: `mcsam train` draws the slots")
  init_memory(args.workdir, config)
  print_next_command("train", "--config", args.config, "--workdir", args.workdir, overrides=overrides)


def add_train_arguments(parser):
  add_config(parser)
  add_workdir(parser)


def run_train(args, overrides):
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed import multihost
  multihost.initialize()
  from mcsam_jax.training.train import train
  train(load_config(args.config, overrides), args.workdir)


VERBS = (
    Verb("demo", "prepare, train and evaluate on synthetic X-rays: about ten minutes on two CPU cores",
         add_demo_arguments, run_demo, "mcsam demo --workdir runs/demo"),
    Verb("prepare", "build sharded records and the vocabulary from source files", add_prepare_arguments, run_prepare,
         "mcsam prepare --config iu_xray --config.data.source_dir=/path/to/iu_xray"),
    Verb("data", "write a contact sheet: the images and reports of a few batches, as the model sees them",
         add_data_arguments, run_data, "mcsam data --config phantom --out sheet.png"),
    Verb("init-memory", "learn topics of the training reports for the memory bank of a workdir",
         add_init_memory_arguments, run_init_memory, "mcsam init-memory --config phantom --workdir runs/a"),
    Verb("train", "train a model in a workdir, or continue from its last checkpoint", add_train_arguments, run_train,
         "mcsam train --config phantom --workdir runs/a --config.train.num_steps=1000"),
)
