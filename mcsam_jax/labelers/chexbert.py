"""CheXbert (Smit et al., EMNLP 2020): a BERT that reads the 14 findings of CheXpert from reports, in Flax.

The state of a report's first token goes to 14 linear heads. Thirteen tell not mentioned, positive, negative or
uncertain; that of No Finding tells whether it holds. The order of findings and classes is that of the authors' code
(stanfordmlgroup/CheXbert: constants.py, models/bert_labeler.py), and so is what happens to a text before it is read.

Shapes: n reports, R rows, T tokens of a row, P reports of a row, F = 14 findings, C = 4 classes.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from input_pipeline.wordpiece import WordPiece
from mcsam_jax.checkpoints.weights import match_variables, read_weights
from mcsam_jax.errors import UserError
from mcsam_jax.labelers.packing import pack, Packed
from mcsam_jax.models.bert import BertConfig
from mcsam_jax.models.chexbert import CheXbert, CLASSES, FINDINGS, variable_shapes

HOW_TO_GET = ("get the authors' chexbert.pth (github.com/stanfordmlgroup/CheXbert) and run "
              "`mcsam import-weights chexbert chexbert.pth {path} --vocabulary vocab.txt`, "
              "with the vocab.txt of bert-base-uncased")
ROW_LENGTHS = (128, 256, 512)       # tokens; most reports have less than 128


class CheXbertReader:
  """Reads the findings of any number of reports, on all devices of a mesh.

  Compiled for two numbers of rows of each length, whatever comes (see packing.py).
  """

  def __init__(self, variables: dict, pieces: Sequence[str], sizes: BertConfig = BertConfig(), mesh: Mesh | None = None,
               dtype: jnp.dtype = jnp.float32, tokens_a_device: int | None = None):
    """Args:
      variables: of `CheXbert`, float32.
      pieces: the vocabulary, in the order of ids.
      mesh: whose devices share the rows; None: the first device. Where it spans several hosts, all of them call
        alike, with the same reports.
      dtype: of the computation; logits and softmax are float32. float32 means that on a TPU too, which by default
        would multiply in bfloat16.
      tokens_a_device: that a device takes at once; None: few on a CPU, whose caches are small, many elsewhere.
    """
    self.tokenizer, self.sizes = WordPiece(pieces), sizes
    self.mesh = mesh or Mesh(np.array(jax.local_devices()[:1]), ("rows",))
    if tokens_a_device is None:
      tokens_a_device = 1024 if self.mesh.devices.flat[0].platform == "cpu" else 16384
    self._lengths = tuple(length for length in ROW_LENGTHS if length < sizes.max_length) + (sizes.max_length,)
    self._tokens = tokens_a_device * self.mesh.size
    self._split = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
    self._whole = NamedSharding(self.mesh, PartitionSpec())
    self._host_variables, self._dtype = variables, dtype
    network = CheXbert(sizes, dtype)

    @functools.partial(jax.jit, out_shardings=self._whole)
    def run(variables, *batch):
      with jax.default_matmul_precision("float32" if dtype == jnp.float32 else "default"):
        return network.apply(variables, *batch)

    self._run = run

  @functools.cached_property
  def _variables(self) -> dict:
    """On the devices, since the first report was read; BERT's kernels are rounded here and not in every call."""
    def place(path, leaf):
      kernel = path[-1].key == "kernel" and path[1].key == "bert"
      return self._place(np.asarray(leaf, self._dtype if kernel else np.float32), self._whole)
    return jax.tree_util.tree_map_with_path(place, self._host_variables)

  def read(self, reports: Sequence[str]) -> list[dict[str, str]]:
    """Returns {finding: absent | positive | negative | uncertain} for each report, in their order."""
    return [{finding: CLASSES[label] for finding, label in zip(FINDINGS, row)}
            for row in self.logits(reports).argmax(-1)]

  def logits(self, reports: Sequence[str]) -> np.ndarray:
    """Returns float32 [n, F, C], -inf where a head lacks a class."""
    return self.logits_of([self.tokenizer.encode(" ".join(report.split()), self.sizes.max_length)
                           for report in reports])

  def logits_of(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the same for the ids of n reports, [CLS] and [SEP] among them."""
    logits = np.empty((len(texts), len(FINDINGS), len(CLASSES)), np.float32)
    # All batches are on their way before the first result is waited for.
    batches = pack(texts, self._lengths, self._tokens, self.mesh.size)
    started = [(batch.numbers, self._start(batch)) for batch in batches]
    for numbers, found in started:
      logits[numbers[numbers >= 0]] = np.asarray(found)[numbers >= 0]
    return logits

  def _start(self, batch: Packed) -> jax.Array:
    arrays = (batch.ids, batch.positions, batch.texts, batch.firsts)
    with jax.set_mesh(self.mesh):                    # the caller may have set its own
      return self._run(self._variables, *(self._place(array, self._split) for array in arrays))

  def _place(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def load_chexbert(path: str) -> tuple[dict, list[str], BertConfig]:
  """Returns (variables, pieces of the vocabulary, sizes) of a file that `import_chexbert` wrote.

  Raises:
    UserError: no such file, or damaged, or another one.
  """
  if not path:
    raise UserError(f"eval.labeler=chexbert needs its weights: {HOW_TO_GET.format(path='chexbert.npz')}, then set "
                    "eval.chexbert=chexbert.npz")
  flat, meta = read_weights(path, HOW_TO_GET.format(path=path))
  if meta.get("architecture") != "chexbert":
    raise UserError(f"eval.chexbert={path} holds {meta.get('architecture')}: {HOW_TO_GET.format(path='chexbert.npz')}")
  sizes = BertConfig(**meta["sizes"])
  return match_variables(flat, variable_shapes(sizes), f"{path} (CheXbert) is of another version"), meta["vocabulary"], sizes
