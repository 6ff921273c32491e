"""CheXbert (Smit et al., EMNLP 2020) as a labeler: a BERT that classifies the 14 findings of CheXpert in a report.

The report's first token feeds 14 linear heads. Thirteen distinguish absent, positive, negative and uncertain; the head
of No Finding has two classes. The order of findings and classes and the preprocessing of a report are those of the
authors' code (stanfordmlgroup/CheXbert: constants.py, models/bert_labeler.py).

Shapes: B reports, R rows, T tokens per row, P reports per row, F = 14 findings, C = 4 classes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import shlex

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from input_pipeline.wordpiece import REQUIRED_TOKENS, WordPiece
from mcsam_jax.checkpoints.weights import match_variables, read_weights
from mcsam_jax.errors import printable, UserError
from mcsam_jax.labelers.packing import pack, PackedBatch
from mcsam_jax.models.text_labeler.bert import BertConfig
from mcsam_jax.models.text_labeler.chexbert import CheXbert, CLASSES, FINDINGS, variable_shapes

HOW_TO_GET = ("get the authors' chexbert.pth (github.com/stanfordmlgroup/CheXbert) and run "
              "`mcsam import-weights chexbert chexbert.pth {path} --vocabulary vocab.txt`, "
              "with the vocab.txt of bert-base-uncased")
ROW_LENGTHS = (128, 256, 512)       # tokens; most reports have fewer than 128
MAX_SIZE = 2 ** 20                  # largest axis of a parameter


class CheXbertClassifier:
  """Classifies the findings of any number of reports on all devices of a mesh.

  Reports are packed into rows (packing.py), so the network is compiled for at most two shapes per row length.
  """

  def __init__(self, variables: dict, vocabulary: Sequence[str], config: BertConfig, mesh: Mesh | None = None,
               dtype: jnp.dtype = jnp.float32, tokens_per_device: int | None = None):
    """Prepares the network; weights are moved to the devices when the first report is classified.

    Args:
      variables: variables of `CheXbert`, float32.
      vocabulary: word pieces, in the order of their ids.
      config: sizes of the BERT.
      mesh: devices that share the rows; None: the first local device. If the mesh spans several hosts, all of them
        must call with the same reports.
      dtype: dtype of the computation; logits and softmax are always float32. With float32 a TPU multiplies in float32
        too, where its default would be bfloat16.
      tokens_per_device: batch size; None: small on a CPU, whose caches are small, and large elsewhere.
    """
    self.tokenizer, self.config = WordPiece(vocabulary), config
    self.mesh = mesh or Mesh(np.array(jax.local_devices()[:1]), ("rows",))
    if tokens_per_device is None:
      tokens_per_device = 1024 if self.mesh.devices.flat[0].platform == "cpu" else 16384
    self._row_lengths = tuple(length for length in ROW_LENGTHS if length < config.max_length) + (config.max_length,)
    self._tokens_per_batch = tokens_per_device * self.mesh.size
    self._sharded = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
    self._replicated = NamedSharding(self.mesh, PartitionSpec())
    self._host_variables, self._dtype = variables, dtype
    network = CheXbert(config, dtype)

    @functools.partial(jax.jit, out_shardings=self._replicated)
    def apply(variables, *batch):
      with jax.default_matmul_precision("float32" if dtype == jnp.float32 else "default"):
        return network.apply(variables, *batch)

    self._apply = apply

  @functools.cached_property
  def _variables(self) -> dict:
    """The variables on the devices; BERT's kernels are cast to `dtype` once, not in every call."""
    def put(path, leaf):
      is_kernel = path[-1].key == "kernel" and path[1].key == "bert"
      return self._put(np.asarray(leaf, self._dtype if is_kernel else np.float32), self._replicated)
    return jax.tree_util.tree_map_with_path(put, self._host_variables)

  def classify(self, reports: Sequence[str]) -> list[dict[str, str]]:
    """Returns {finding: absent | positive | negative | uncertain} for each report."""
    return [{finding: CLASSES[index] for finding, index in zip(FINDINGS, row)}
            for row in self.compute_logits(reports).argmax(-1)]

  def compute_logits(self, reports: Sequence[str]) -> np.ndarray:
    """Returns float32 [B, F, C], -inf for classes that a head lacks."""
    return self.compute_logits_from_ids([self.tokenizer.encode(" ".join(report.split()), self.config.max_length)
                                         for report in reports])

  def compute_logits_from_ids(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the logits [B, F, C] of tokenized reports, each with [CLS] and [SEP]."""
    logits = np.empty((len(texts), len(FINDINGS), len(CLASSES)), np.float32)
    # All batches are dispatched before the first result is awaited.
    batches = pack(texts, self._row_lengths, self._tokens_per_batch, self.mesh.size)
    dispatched = [(batch.text_indices, self._dispatch(batch)) for batch in batches]
    for text_indices, batch_logits in dispatched:
      logits[text_indices[text_indices >= 0]] = np.asarray(batch_logits)[text_indices >= 0]
    return logits

  def _dispatch(self, batch: PackedBatch) -> jax.Array:
    """Starts the computation of a batch; returns its logits [R, P, F, C]."""
    arrays = (batch.ids, batch.positions, batch.text_ids, batch.first_tokens)
    with jax.set_mesh(self.mesh):                    # the caller may have set another mesh
      return self._apply(self._variables, *(self._put(array, self._sharded) for array in arrays))

  def _put(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def load_chexbert(path: str) -> tuple[dict, list[str], BertConfig]:
  """Returns (variables, vocabulary, config) from a file written by `import_chexbert`.

  Raises:
    UserError: the path is empty, or the file is missing, damaged or of another kind.
  """
  if not path:
    raise UserError(f"eval.labeler=chexbert needs CheXbert's weights: {HOW_TO_GET.format(path='chexbert.npz')}, then "
                    "set eval.chexbert=chexbert.npz")
  flat, metadata = read_weights(path, HOW_TO_GET.format(path=shlex.quote(str(path))))
  if metadata.get("architecture") != "chexbert":
    raise UserError(f"eval.chexbert={path} holds weights of {metadata.get('architecture')}, not of CheXbert: "
                    f"{HOW_TO_GET.format(path='chexbert.npz')}")
  config, vocabulary = _read_sizes(path, metadata, len(flat)), metadata.get("vocabulary")
  if (not isinstance(vocabulary, list) or not all(isinstance(piece, str) for piece in vocabulary)
      or len(vocabulary) != config.vocab_size or not set(REQUIRED_TOKENS) <= set(vocabulary)):
    raise UserError(f"{path} is damaged: its vocabulary isn't a list of {config.vocab_size} word pieces; import it "
                    "again")
  variables = match_variables(flat, variable_shapes(config), f"{path} (CheXbert) is of another version")
  return variables, vocabulary, config


def _read_sizes(path: str, metadata: Mapping, num_arrays: int) -> BertConfig:
  """Returns the sizes of the network in a file, which has more arrays than layers.

  Raises:
    UserError: a size is missing, unknown, or can't be that of a network.
  """
  names, sizes = {field.name for field in dataclasses.fields(BertConfig)}, metadata.get("sizes")
  if not isinstance(sizes, dict) or set(sizes) != names:
    raise UserError(f"{path} is damaged: it doesn't say the sizes {', '.join(sorted(names))}; import it again")
  for name, size in sizes.items():
    if type(size) is not int or not 1 <= size <= (num_arrays if name == "num_layers" else MAX_SIZE):
      raise UserError(f"{path} is damaged: sizes.{name} is {printable(str(size))}; import it again")
  if sizes["width"] % sizes["num_heads"]:
    raise UserError(f"{path} is damaged: sizes.width={sizes['width']} isn't a multiple of "
                    f"sizes.num_heads={sizes['num_heads']}; import it again")
  return BertConfig(**sizes)
