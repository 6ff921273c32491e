"""The memory bank before training: topics of the reports, copied to slots, and what each slot stands for.

`make_initial_memory` turns cleaned training reports into the first values of the model's
slots. `save_initial_memory` writes two files: slots.npz for the model and the evaluation, and
topics.json for a person who wants to read what the memory holds.

Shapes: S slots, K topics, D slot width.
"""

from collections.abc import Callable
import dataclasses
import io
import json

from etils import epath
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.atomic_io import atomic_write, NPZ_ERRORS
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.coherence import npmi
from mcsam_jax.memory_init.kmeans import compute_kmeans_topics, sample_random_topics
from mcsam_jax.memory_init.topics import learn_topics
from mcsam_jax.memory_init.word_vectors import compute_tf_idf, make_word_vectors, WordVectors

KINDS = ("topics", "kmeans", "random")
NUM_NEAREST = 10            # words that describe a slot or topic, and that coherence is measured on


@dataclasses.dataclass(frozen=True)
class InitialMemory:
  """The slots and their meaning; words are the nearest ones, the nearest first, with their cosines."""
  kind: str                           # topics | kmeans | random
  slots: np.ndarray                   # [S, D] float32, root mean square of each slot 1
  slot_words: list[list[str]]         # S x 10
  slot_cosines: np.ndarray            # [S, 10] float32
  slot_topics: np.ndarray           # [S] int32
  topic_words: list[list[str]]        # K x 10
  topic_cosines: np.ndarray           # [K, 10] float32
  npmi: np.ndarray                    # [K] float32, coherence of each topic over the training reports

  @property
  def median_npmi(self) -> float:
    return float(np.median(self.npmi))


def make_initial_memory(reports: list[str], config: ConfigDict, seed: int,
                     log: Callable[[str], None] = print) -> InitialMemory:
  """Returns the memory bank of cleaned training reports, the same for the same arguments.

  Args:
    reports: words separated by spaces, as the cleaning of the data set leaves them.
    config: the whole tree; `memory` and `memory_init` are read.
    seed: of first topics, batches and jitter.

  Raises:
    UserError: fields that contradict each other, or reports without words to learn from.
  """
  fields, num_slots, width = config.memory_init, config.memory.num_slots, config.memory.slot_width
  _check(config)
  rng = np.random.default_rng(seed)
  words = make_word_vectors(reports, fields.word_vectors, width)
  if len(words.words) < NUM_NEAREST and fields.kind != "random":
    raise UserError(f"memory_init: the {len(reports)} training reports leave {len(words.words)} content "
                    "words with vectors, too few; add some or set --config.memory_init.kind=random")
  log(f"memory: {fields.kind} of {len(reports)} reports, {len(words.words)} content words, "
       f"{num_slots} slots of width {width}")
  if fields.kind == "topics":
    topics = learn_topics(words, compute_tf_idf(reports, words.words), fields.num_topics, fields.epsilon,
                          fields.steps, fields.batch_size, fields.learning_rate, rng, log)
  elif fields.kind == "kmeans":
    masses = compute_tf_idf(reports, words.words).sum_by_word(len(words.words))
    topics = compute_kmeans_topics(words.vectors, masses, fields.num_topics, rng)
  else:
    topics = sample_random_topics(num_slots, width, rng)         # noise has no topics to share: each slot is its own
  slot_topics = (np.arange(num_slots) % len(topics)).astype(np.int32)
  slots = make_slots(topics[slot_topics], 0.0 if fields.kind == "random" else fields.jitter, rng)
  topic_words, topic_cosines = find_nearest_words(topics, words)
  slot_words, slot_cosines = find_nearest_words(slots, words)
  bank = InitialMemory(fields.kind, slots, slot_words, slot_cosines, slot_topics, topic_words, topic_cosines,
                    npmi(topic_words, reports).astype(np.float32))
  log(f"memory: median coherence (NPMI) of {len(topics)} topics {bank.median_npmi:.3f}")
  return bank


def make_slots(topics: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
  """Returns `topics` [S, D], moved by noise of `jitter` times their length, as slots [S, D].

  Every slot gets a root mean square of 1, as if drawn from a standard normal
  distribution, which is how slots without topics start.
  """
  moved = topics + jitter * rng.standard_normal(topics.shape) / np.sqrt(topics.shape[1])
  return (moved / np.sqrt(np.mean(moved**2, axis=1, keepdims=True))).astype(np.float32)


def find_nearest_words(vectors: np.ndarray, words: WordVectors) -> tuple[list[list[str]], np.ndarray]:
  """Returns the words nearest to each of `vectors` [S, D] by cosine, and the cosines [S, NUM_NEAREST]."""
  cosines = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ words.vectors.T           # [S, W]
  order = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEAREST]
  names = [[words.words[i] for i in row] for row in order]
  return names, np.take_along_axis(cosines, order, axis=1).astype(np.float32)


def save_initial_memory(directory: epath.PathLike, bank: InitialMemory) -> None:
  """Writes topics.json and slots.npz into `directory`, each whole or not at all."""
  directory = epath.Path(directory)
  arrays = {field.name: np.asarray(getattr(bank, field.name)) for field in dataclasses.fields(bank)}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  atomic_write(directory / "topics.json", _readable(bank))
  atomic_write(directory / "slots.npz", buffer.getvalue())         # last: with the slots all is there


def load_initial_memory(directory: epath.PathLike) -> InitialMemory:
  """Returns what `save_initial_memory` wrote.

  Raises:
    UserError: slots.npz is missing or damaged.
  """
  path = epath.Path(directory) / "slots.npz"
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      arrays = {field.name: file[field.name] for field in dataclasses.fields(InitialMemory)}
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: run `mcsam init-memory` with this workdir first") from error
  except NPZ_ERRORS as error:
    raise UserError(f"{path} is damaged ({error}): run `mcsam init-memory` again") from error
  return InitialMemory(**{**arrays, "kind": str(arrays["kind"]), "slot_words": arrays["slot_words"].tolist(),
                       "topic_words": arrays["topic_words"].tolist()})


def _readable(bank: InitialMemory) -> str:
  """Returns topics.json: a line a topic, the most coherent first."""
  copies = np.bincount(bank.slot_topics, minlength=len(bank.npmi))
  lines = []
  for topic in np.argsort(-bank.npmi, kind="stable"):
    nearest = zip(bank.topic_words[topic], bank.topic_cosines[topic])
    words = {word: round(float(cosine), 3) for word, cosine in nearest}
    lines.append(json.dumps({"topic": int(topic), "npmi": round(float(bank.npmi[topic]), 3),
                             "slots": int(copies[topic]), "words": words}))
  topics = ",\n    ".join(lines)
  return (f'{{\n  "kind": "{bank.kind}",\n  "median_npmi": {bank.median_npmi:.3f},\n'
          f'  "topics": [\n    {topics}\n  ]\n}}\n')


def _check(config: ConfigDict) -> None:
  fields, num_slots = config.memory_init, config.memory.num_slots
  if fields.kind not in KINDS:
    raise UserError(f"memory_init.kind is {fields.kind!r}, expected one of {', '.join(KINDS)}")
  for field in ("num_topics", "epsilon", "steps", "batch_size", "learning_rate"):
    if fields[field] <= 0:
      raise UserError(f"memory_init.{field} is {fields[field]}, expected more than 0")
  if fields.jitter < 0:
    raise UserError(f"memory_init.jitter is {fields.jitter}, expected 0 or more")
  if fields.kind != "random" and fields.num_topics > num_slots:
    raise UserError(f"memory_init.num_topics is {fields.num_topics}, more than memory.num_slots, "
                    f"{num_slots}: every topic needs a slot")
