"""Computes the initial memory slots from the training reports: by topics, by k-means, or at random.

Shapes: S slots, D slot width, W words.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.coherence import compute_npmi
from mcsam_jax.memory_init.initial_memory import InitialMemory, NUM_NEAREST
from mcsam_jax.memory_init.kmeans import compute_kmeans_topics, sample_random_topics
from mcsam_jax.memory_init.topics import learn_topics
from mcsam_jax.memory_init.word_vectors import compute_tf_idf, make_word_vectors, WordVectors

KINDS = ("topics", "kmeans", "random")


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
