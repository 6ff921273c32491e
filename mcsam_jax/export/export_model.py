"""`mcsam export`: writes a trained model as a folder that can be handed over (checkpoints/exported.py lists its files).

The folder holds no optimizer state, no path of this machine, no image and no report: of the training texts it has the
vocabulary and the words of the memory's topics.
"""

from collections.abc import Callable, Sequence
import importlib.metadata
import json
import platform
import shlex

from etils import epath
import jax
from ml_collections import ConfigDict

from mcsam_jax import __version__
from mcsam_jax import config as configs
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.exported import (
  describe_bytes,
  ENCODER_FILE,
  EXPORT_FILE,
  is_exported,
  MODEL_FILE,
  read_export_info,
  save_tensors,
)
from mcsam_jax.checkpoints.weights import read_weights
from mcsam_jax.checkpoints.workdir import open_workdir, Workdir
from mcsam_jax.distributed.bucket_access import check_bucket_private
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.errors import UserError
from mcsam_jax.export.model_card import write_model_card
from mcsam_jax.export.stablehlo import DESCRIPTION_FILE, export_search, format_description, PROGRAM_FILE
from mcsam_jax.inference.load import load_model
from mcsam_jax.inference.ood import load_initial_encoder, load_or_fit_detector, save_detector
from mcsam_jax.memory_init.initial_memory import save_initial_memory

VERSIONED_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors")
ONE_DEVICE = [f"--config.mesh.{axis}=1" for axis in ("data", "fsdp", "tensor")]


def export_model(workdir: str, out: str, step: int | None = None, overrides: Sequence[str] = (),
                 stablehlo: bool = False, log: Callable[[str], None] = print) -> None:
  """Writes the model of a workdir to a new folder.

  Args:
    workdir: of the training run, or an exported folder.
    out: the folder to create, local or gs://.
    step: of the checkpoint; None: the best on val.
    overrides: `--config.field=value`, for fields of `decode` and `eval` that the exported config is to have.
    stablehlo: also writes the beam search as a StableHLO program.
    log: takes a line of progress.

  Raises:
    UserError: the workdir has no checkpoint, or not that step; `out` exists and is not empty; or it is in a public
      bucket, and the data set is restricted.
  """
  folder = configs.absolute_path(out)
  if folder.exists() and (not folder.is_dir() or next(iter(folder.iterdir()), None) is not None):
    raise UserError(f"{folder} exists and is not empty: give the name of a new folder")
  work = open_workdir(workdir, [*ONE_DEVICE, *overrides], log)
  check_bucket_private(work.config, folder)
  mesh = make_mesh(work.config, jax.local_devices()[:1])
  with jax.set_mesh(mesh):
    loaded = load_model(work, mesh, step, log)
  variables = jax.device_get(loaded.variables)
  folder.mkdir(parents=True, exist_ok=True)

  # Weights.
  save_tensors(folder / MODEL_FILE, {name: tree for name, tree in variables.items() if tree}, {"format": "flax"})
  encoder_origin = {}
  if work.encoder_variables is not None:
    encoder_origin = _read_encoder_origin(work)
    save_tensors(folder / ENCODER_FILE, work.encoder_variables, {"format": "flax"})

  # What else is needed to use them.
  (folder / "tokenizer").mkdir(exist_ok=True)
  work.tokenizer.save(folder / "tokenizer")
  if work.initial_memory is not None:
    save_initial_memory(folder / "memory_bank", work.initial_memory)
  detector = load_or_fit_detector(work, log)
  if detector is None:
    log("the export has no reference for images unlike those of training: it needs the training records, once")
  else:
    save_detector(folder, detector)
  if stablehlo:
    if work.config.decode.search != "beam":
      log(f"decode.search={work.config.decode.search} needs the training records: the program is a beam search")
    log("exporting the beam search as StableHLO")
    encoder = load_initial_encoder(work) if work.config.encoder.frozen else None
    program, description = export_search(loaded.model, variables, encoder and (encoder[0], jax.device_get(encoder[1])),
                                         work.config, work.tokenizer, log)
    atomic_write(folder / PROGRAM_FILE, program)
    atomic_write(folder / DESCRIPTION_FILE, format_description(description))

  # Config, model card, and last export.json: with it the folder is complete.
  versions = {"mcsam_jax": __version__, "python": platform.python_version(),
              **{name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES}}
  configs.save_config(make_portable(work.config, work.encoder_variables is not None), folder / "config.json")
  atomic_write(folder / "README.md", write_model_card(work, loaded.step, variables, encoder_origin, versions))
  files = {str(path.relative_to(folder)): describe_bytes(path.read_bytes()) for path in _list_files(folder)}
  atomic_write(folder / EXPORT_FILE, json.dumps(
      {"step": loaded.step, "versions": versions, "encoder": encoder_origin, "files": files}, indent=1) + "\n")
  size = sum(file["bytes"] for file in files.values())
  log(f"exported step {loaded.step} to {folder}, {size / 1e6:.1f} MB")
  log(f"next: mcsam report --workdir {shlex.quote(str(folder))} IMAGE")


def make_portable(config: ConfigDict, has_encoder: bool) -> ConfigDict:
  """Returns a config without what belongs to one machine: paths, the mesh and settings of preparation."""
  portable, defaults = config.copy_and_resolve_references().unlock(), configs.default_config()
  paths = dict.fromkeys(configs.PATH_FIELDS, "") | {"data.data_dir": defaults.data.data_dir}
  if has_encoder:
    paths["encoder.weights"] = ENCODER_FILE
  portable.update_from_flattened_dict(paths)
  portable.update({section: defaults[section].to_dict() for section in ("mesh", "prepare")})
  return portable


def _read_encoder_origin(work: Workdir) -> dict[str, str]:
  """Returns what is known of the pretrained encoder: architecture, name and digest of its source, its data."""
  if is_exported(work.path):
    return read_export_info(work.path)["encoder"]
  meta = read_weights(work.path / "encoder.npz", "restore it")[1]
  source = str(meta.get("source", "unknown")).replace("\\", "/").rpartition("/")[2]
  return {**{name: str(meta[name]) for name in ("architecture", "sha256", "pretraining_data", "license")
             if name in meta}, "source": source}


def _list_files(folder: epath.Path) -> list[epath.Path]:
  """Returns the files of a new folder and of its subfolders, sorted."""
  entries = sorted(folder.iterdir(), key=str)
  return [path for entry in entries for path in (sorted(entry.iterdir(), key=str) if entry.is_dir() else [entry])]
