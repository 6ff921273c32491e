"""Initial values of the memory slots: topics of the training reports, copied to the slots with some noise.

`make_initial_memory` computes them from cleaned training reports.
`save_initial_memory` writes slots.npz, which training and evaluation read, and
topics.json, a human-readable list of the topics.

Shapes: S slots, K topics, D slot width, W words.
"""

from collections.abc import Callable
import dataclasses
import io
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import open_npz
from mcsam_jax.memory_init.coherence import compute_npmi
from mcsam_jax.memory_init.kmeans import compute_kmeans_topics, sample_random_topics
from mcsam_jax.memory_init.topics import learn_topics
from mcsam_jax.memory_init.word_vectors import compute_tf_idf, make_word_vectors, WordVectors

KINDS = ("topics", "kmeans", "random")
NUM_NEAREST = 10            # words that describe a slot or topic; coherence is computed for these


@dataclasses.dataclass(frozen=True)
class InitialMemory:
  """Initial slots, each described by the words with the highest cosine similarity, in descending order."""
  kind: str                           # topics | kmeans | random
  slots: np.ndarray                   # [S, D] float32; the root mean square of each slot is 1
  slot_words: list[list[str]]         # S x 10
  slot_cosines: np.ndarray            # [S, 10] float32
  slot_topics: np.ndarray             # [S] int32, the topic of each slot
  topic_words: list[list[str]]        # K x 10
  topic_cosines: np.ndarray           # [K, 10] float32
  npmi: np.ndarray                    # [K] float32, coherence of each topic in the training reports

  @property
  def median_npmi(self) -> float:
    return float(np.median(self.npmi))


def make_initial_memory(reports: list[str], config: ConfigDict, seed: int,
                        log: Callable[[str], None] = print) -> InitialMemory:
  """Computes the initial memory from cleaned training reports, deterministically.

  Args:
    reports: words separated by spaces, the output of `text.clean`.
    config: the whole config; `memory` and `memory_init` are used.
    seed: seed for initial topics, batches and jitter.
    log: receives progress lines.

  Raises:
    UserError: config fields are invalid, or the reports have too few content words.
  """
  fields, num_slots, width = config.memory_init, config.memory.num_slots, config.memory.slot_width
  _check_config(config)
  rng = np.random.default_rng(seed)
  words = make_word_vectors(reports, fields.word_vectors, width)
  if len(words.words) < NUM_NEAREST and fields.kind != "random":
    raise UserError(f"memory_init: found {len(words.words)} content words with vectors in the {len(reports)} training "
                    f"reports, expected at least {NUM_NEAREST}; add reports or set --config.memory_init.kind=random")
  log(f"memory: {fields.kind}, {len(reports)} reports, {len(words.words)} content words, {num_slots} slots of width "
      f"{width}")
  if fields.kind == "topics":
    topics = learn_topics(words, compute_tf_idf(reports, words.words), fields.num_topics, fields.epsilon,
                          fields.steps, fields.batch_size, fields.learning_rate, rng, log)
  elif fields.kind == "kmeans":
    masses = compute_tf_idf(reports, words.words).sum_by_word(len(words.words))
    topics = compute_kmeans_topics(words.vectors, masses, fields.num_topics, rng)
  else:
    topics = sample_random_topics(num_slots, width, rng)         # one per slot: there are no topics to share
  slot_topics = (np.arange(num_slots) % len(topics)).astype(np.int32)
  slots = make_slots(topics[slot_topics], 0.0 if fields.kind == "random" else fields.jitter, rng)
  topic_words, topic_cosines = find_nearest_words(topics, words)
  slot_words, slot_cosines = find_nearest_words(slots, words)
  memory = InitialMemory(fields.kind, slots, slot_words, slot_cosines, slot_topics, topic_words, topic_cosines,
                         compute_npmi(topic_words, reports).astype(np.float32))
  log(f"memory: median coherence (NPMI) of {len(topics)} topics {memory.median_npmi:.3f}")
  return memory


def make_slots(topics: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
  """Returns slots [S, D]: the topic of each slot plus noise, rescaled to a root mean square of 1.

  The scale is that of a standard normal distribution, from which slots without
  topics are drawn.

  Args:
    topics: [S, D], the unit topic vector of each slot.
    jitter: expected norm of the noise, relative to that of a topic.
    rng: generator of the noise.
  """
  noisy = topics + jitter * rng.standard_normal(topics.shape) / np.sqrt(topics.shape[1])
  return (noisy / np.sqrt(np.mean(noisy**2, axis=1, keepdims=True))).astype(np.float32)


def find_nearest_words(vectors: np.ndarray, words: WordVectors) -> tuple[list[list[str]], np.ndarray]:
  """Returns the words with the highest cosine to each of `vectors` [S, D], and the cosines [S, NUM_NEAREST]."""
  cosines = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ words.vectors.T           # [S, W]
  order = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEAREST]
  names = [[words.words[i] for i in row] for row in order]
  return names, np.take_along_axis(cosines, order, axis=1).astype(np.float32)


def save_initial_memory(directory: epath.PathLike, memory: InitialMemory) -> None:
  """Writes topics.json and slots.npz to `directory`, each atomically."""
  directory = epath.Path(directory)
  arrays: dict[str, Any] = {field.name: np.asarray(getattr(memory, field.name)) for field in dataclasses.fields(memory)}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  atomic_write(directory / "topics.json", _format_topics(memory))
  atomic_write(directory / "slots.npz", buffer.getvalue())         # last: if slots.npz exists, both files do


def load_initial_memory(directory: epath.PathLike) -> InitialMemory:
  """Reads the files of `save_initial_memory`.

  Raises:
    UserError: slots.npz is missing or damaged, or its values aren't finite.
  """
  path = epath.Path(directory) / "slots.npz"
  try:
    with open_npz(path) as file:
      arrays = {field.name: file.read(field.name) for field in dataclasses.fields(InitialMemory)}
    _check_arrays(arrays)
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: run `mcsam init-memory` with this workdir first") from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged ({printable(str(error))}): run `mcsam init-memory` again") from error
  return InitialMemory(**{**arrays, "kind": str(arrays["kind"]), "slot_words": arrays["slot_words"].tolist(),
                          "topic_words": arrays["topic_words"].tolist()})


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
  """Raises ValueError unless the arrays have the types and shapes of InitialMemory, and finite values."""
  num_slots, num_topics = (arrays[name].shape[:1] for name in ("slots", "npmi"))
  width, nearest = arrays["slots"].shape[1:], (NUM_NEAREST,)
  expected = {"kind": ("U", ()), "slots": ("f", num_slots + width), "slot_words": ("U", num_slots + nearest),
              "slot_cosines": ("f", num_slots + nearest), "slot_topics": ("i", num_slots),
              "topic_words": ("U", num_topics + nearest), "topic_cosines": ("f", num_topics + nearest),
              "npmi": ("f", num_topics)}
  for name, (kind, shape) in expected.items():
    array = arrays[name]
    if array.dtype.kind != kind or array.shape != shape or len(width) != 1:
      raise ValueError(f"{name} has shape {list(array.shape)} and type {array.dtype}")
    if kind == "f" and not np.isfinite(array).all():
      raise ValueError(f"{name} has values that are NaN or infinite")
  if not num_topics[0] > arrays["slot_topics"].max(initial=0) >= arrays["slot_topics"].min(initial=0) >= 0:
    raise ValueError("slot_topics names topics that don't exist")


def _format_topics(memory: InitialMemory) -> str:
  """Returns the text of topics.json: one line per topic, the most coherent first."""
  num_slots = np.bincount(memory.slot_topics, minlength=len(memory.npmi))
  lines = []
  for topic in np.argsort(-memory.npmi, kind="stable"):
    nearest = zip(memory.topic_words[topic], memory.topic_cosines[topic])
    words = {word: round(float(cosine), 3) for word, cosine in nearest}
    lines.append(json.dumps({"topic": int(topic), "npmi": round(float(memory.npmi[topic]), 3),
                             "num_slots": int(num_slots[topic]), "words": words}))
  topics = ",\n    ".join(lines)
  return (f'{{\n  "kind": "{memory.kind}",\n  "median_npmi": {memory.median_npmi:.3f},\n'
          f'  "topics": [\n    {topics}\n  ]\n}}\n')


def _check_config(config: ConfigDict) -> None:
  """Raises UserError if a field of `memory_init` is invalid."""
  fields, num_slots = config.memory_init, config.memory.num_slots
  if fields.kind not in KINDS:
    raise UserError(f"memory_init.kind is {fields.kind!r}, expected one of {', '.join(KINDS)}")
  for field in ("num_topics", "epsilon", "steps", "batch_size", "learning_rate"):
    if fields[field] <= 0:
      raise UserError(f"memory_init.{field} is {fields[field]}, expected more than 0")
  if fields.jitter < 0:
    raise UserError(f"memory_init.jitter is {fields.jitter}, expected 0 or more")
  if fields.kind != "random" and fields.num_topics > num_slots:
    raise UserError(f"memory_init.num_topics is {fields.num_topics}, expected at most memory.num_slots, which is "
                    f"{num_slots}: every topic needs a slot")
