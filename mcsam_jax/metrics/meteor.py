"""The two Java programs behind the scores: METEOR 1.5 and the Penn Treebank tokenizer.

pycocoevalcap ships both as jars. Nothing else needs Java: if it is missing, crashes or hangs, `JavaUnavailable` gives
the reason, and the caller leaves out that one score and keeps the rest.

Shapes: B pairs of reports.
"""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time
from typing import IO, NoReturn

import numpy as np
from pycocoevalcap.meteor import meteor as pycoco_meteor
from pycocoevalcap.tokenizer import ptbtokenizer

# Java takes the encoding of texts and of file names from these; its default in the locale C is ASCII.
_JAVA = ("java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
_JAR_FOLDER = pathlib.Path(pycoco_meteor.__file__).absolute().parent
# Without -a, METEOR looks for its paraphrases at the URL of the jar, in which a blank and an "e" with an accent are
# escaped, and finds no such file.
_METEOR = (*_JAVA, "-Xmx2G", "-jar", pycoco_meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm", "-a",
           os.path.join("data", "paraphrase-en.gz"))
NUM_STATS = 23                # numbers that METEOR returns per pair
# METEOR's protocol can't transmit an empty text; these words replace it and match no other word.
_EMPTY_REFERENCE, _EMPTY_HYPOTHESIS = "emptyreference", "emptyhypothesis"


class JavaUnavailable(Exception):
  """Java is missing, failed or took too long; the message is meant for the user."""


class Meteor:
  """METEOR as one process for many scores: starting it takes seconds, scoring a pair a millisecond.

  It is a context manager, which ends the process. A failure is final: later calls raise the same error immediately
  instead of waiting again.
  """

  def __init__(self, start_seconds: float = 120.0, pair_seconds: float = 0.1):
    """Sets the timeout of a call: `start_seconds` + `pair_seconds` per pair. The process starts when first needed."""
    self._start_seconds, self._pair_seconds = start_seconds, pair_seconds
    self._process: subprocess.Popen[bytes] | None = None
    self._errors: IO[bytes] | None = None                   # what Java writes to stderr
    self._failure = ""
    self._cache: dict[tuple[str, str], list[float]] = {}    # (reference, hypothesis) -> statistics

  def __enter__(self):
    """Returns the scorer itself."""
    return self

  def __exit__(self, *unused):
    """Ends the process."""
    self._close()

  def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, list[float]]:
    """Returns METEOR of all B pairs together, and of each pair.

    Raises:
      JavaUnavailable: Java is missing, failed or timed out.
    """
    stats = self.compute_stats(references, hypotheses)
    return float(compute_meteor(stats.sum(0))), compute_meteor(stats).tolist()

  def compute_stats(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Returns float64 [B, 23]: METEOR's statistics of each pair, whose sums `compute_meteor` takes.

    Each different pair is sent to Java once. If two texts are equal, their single chunk counts as 0 chunks, as in
    METEOR's own sums.

    Raises:
      JavaUnavailable: Java is missing, failed or timed out.
    """
    pairs = [(_make_line(reference, _EMPTY_REFERENCE), _make_line(hypothesis, _EMPTY_HYPOTHESIS))
             for reference, hypothesis in zip(references, hypotheses, strict=True)]
    new = [pair for pair in dict.fromkeys(pairs) if pair not in self._cache]
    if new:
      self._cache.update(zip(new, self._query(new)))
    return np.array([self._cache[pair] for pair in pairs], np.float64).reshape(len(pairs), NUM_STATS)

  def _query(self, pairs: list[tuple[str, str]]) -> list[list[float]]:
    """Returns the statistics of pairs, from the Java process."""
    if self._failure:
      raise JavaUnavailable(self._failure)
    if self._process is None:
      self._process = self._start_process()
    process = self._process
    assert process.stdin is not None and process.stdout is not None
    seconds = self._start_seconds + self._pair_seconds * len(pairs)
    timeout = threading.Timer(seconds, process.kill)
    # All queries are sent at once: a round trip per pair would take as long as the scoring itself.
    queries = "".join(f"SCORE ||| {reference} ||| {hypothesis}\n" for reference, hypothesis in pairs
                      ).encode("utf-8", "replace")
    writer = threading.Thread(target=_write, args=(process.stdin, queries), daemon=True)
    start_time = time.monotonic()
    timeout.start()
    writer.start()
    try:
      answers = [[float(number) for number in process.stdout.readline().split()] for _ in pairs]
      if any(len(answer) != NUM_STATS for answer in answers):
        raise ValueError(f"expected {NUM_STATS} numbers")
      return [_ignore_single_chunk(answer) for answer in answers]
    except (OSError, ValueError):                           # a closed pipe, or an answer that is not a number
      timed_out = time.monotonic() - start_time >= seconds
      reason = self._close(0 if timed_out else 2)           # a process that fails needs a moment to say why
      self._fail(f"took more than {seconds:.0f} s" if timed_out else f"ended early ({reason or 'without a message'})")
    finally:
      timeout.cancel()
      writer.join(1.0)

  def start(self) -> None:
    """Starts Java in the background; it loads its tables for seconds while the caller does something else."""
    if self._process is None and not self._failure:
      with contextlib.suppress(JavaUnavailable):            # the first query will raise it again
        self._process = self._start_process()

  def _start_process(self) -> subprocess.Popen[bytes]:
    if not shutil.which("java"):
      self._fail("is not installed")
    try:
      self._errors = tempfile.TemporaryFile()               # a pipe that nobody reads would fill up and block Java
      return subprocess.Popen(_METEOR, cwd=_JAR_FOLDER, env=_make_environment(), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=self._errors)
    except OSError as error:
      self._fail(f"does not start ({error})")

  def _fail(self, reason: str) -> NoReturn:
    self._failure = f"METEOR needs Java, which {reason}"
    raise JavaUnavailable(self._failure)

  def _close(self, seconds: float = 0) -> str:
    """Ends the process after `seconds` at most; returns what it said about a failure, "" if nothing."""
    if self._process is None:
      return ""
    process, self._process = self._process, None
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(seconds)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
      if pipe is not None:
        with contextlib.suppress(OSError):                  # buffered data has no reader any more
          pipe.close()
    if self._errors is None:
      return ""
    with self._errors as errors:
      errors.seek(0)
      return _find_java_error(errors.read(1 << 16))


def compute_meteor(stats: np.ndarray) -> np.ndarray:
  """Returns METEOR 1.5 [...] of summed statistics [..., 23], with the formula and parameters of its Java for English.

  The parameters are those of the task "rank" (Denkowski and Lavie, WMT 2014), which -l en selects: alpha weights
  recall, delta content words, beta and gamma the penalty for matches in many chunks; exact, stem, synonym and
  paraphrase matches count 1, .6, .8 and .6. The statistics: lengths of hypothesis and reference; function words of
  each; for each kind of match, content words of both and function words of both; number of chunks; matched words of
  each.
  """
  alpha, beta, gamma, delta, kind_weights = 0.85, 0.2, 0.6, 0.75, np.array([1, 0.6, 0.8, 0.6])
  lengths, function_words = stats[..., 0:2], stats[..., 2:4]                  # [..., (hypothesis, reference)]
  matches = stats[..., 4:20].reshape(*stats.shape[:-1], 4, 2, 2)              # [..., kind, (content, function), side]
  num_chunks, num_matched = stats[..., 20], stats[..., 21:23]
  weighted_matches = np.einsum("...kcs,k,c->...s", matches, kind_weights, [delta, 1 - delta])
  with np.errstate(divide="ignore", invalid="ignore"):
    precision, recall = np.moveaxis(
        weighted_matches / (delta * (lengths - function_words) + (1 - delta) * function_words), -1, 0)
    f_mean = 1 / ((1 - alpha) / precision + alpha / recall)
    penalty = gamma * (num_chunks / num_matched.mean(-1)) ** beta
    return np.maximum(np.nan_to_num(f_mean * (1 - penalty)), 0)


def ptb_tokenize(texts: list[str], seconds: float = 300.0) -> list[str]:
  """Returns the texts in lower case, as Penn Treebank tokens without punctuation, like pycocoevalcap.

  Its list of punctuation contains -LRB-, but the tokens are -lrb-, so brackets are kept, here as in the literature.
  pycocoevalcap's own call writes the reports to a file in its package folder; here they go through a pipe.

  Raises:
    JavaUnavailable: Java is missing, failed or timed out.
  """
  if not shutil.which("java"):
    raise JavaUnavailable("PTB tokens need Java, which is not installed")
  jar = pathlib.Path(ptbtokenizer.__file__).absolute().with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
  command = [*_JAVA, "-cp", jar.name, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
             "-encoding", "UTF-8"]
  try:
    result = subprocess.run(command, input="".join(" ".join(text.split()) + "\n" for text in texts), cwd=jar.parent,
                            env=_make_environment(), capture_output=True, encoding="utf-8", errors="replace",
                            timeout=seconds, check=True)
  except subprocess.TimeoutExpired as error:
    raise JavaUnavailable(f"PTB tokens need Java, which took more than {seconds:.0f} s") from error
  except (OSError, subprocess.CalledProcessError) as error:
    reason = _find_java_error((getattr(error, "stderr", None) or "").encode()) or type(error).__name__
    raise JavaUnavailable(f"PTB tokens need Java, which failed ({reason})") from error
  lines = result.stdout.split("\n")[:-1]
  if len(lines) != len(texts):
    raise JavaUnavailable(f"PTB tokens need Java, which returned {len(lines)} lines for {len(texts)} reports")
  return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in lines]


def _make_environment() -> dict[str, str]:
  """Returns the environment for Java: in a locale without UTF-8 it can't open files with other names than ASCII."""
  return {**os.environ, "LC_ALL": "C.UTF-8"}


def _find_java_error(output: bytes) -> str:
  """Returns the first line of Java's own output that names an error, else the last line; "" without any.

  Lines that quote the input are left out, since reports may be restricted.
  """
  lines = [" ".join(line.split()) for line in output.decode("utf-8", "replace").splitlines()
           if line.strip() and not re.search(r"SCORE|\|\|\||Untokenizable", line)]
  errors = [line for line in lines if re.search(r"error|exception|could not|unable", line, re.IGNORECASE)]
  return next(iter([*errors, *lines[-1:]]), "")[:300]


def _ignore_single_chunk(stats: list[float]) -> list[float]:
  """Returns the statistics of a pair with 0 chunks if the two texts match completely in a single chunk."""
  matched_words = [sum(stats[4:20:2]), sum(stats[5:20:2])]                    # in hypothesis and reference
  if stats[20] == 1 and matched_words == stats[:2]:
    return [*stats[:20], 0.0, *stats[21:]]
  return stats


def _write(pipe: IO[bytes], queries: bytes) -> None:
  with contextlib.suppress(OSError, ValueError):            # the reader of the answers will report the failure
    pipe.write(queries)
    pipe.flush()


def _make_line(text: str, if_empty: str) -> str:
  """Returns `text` as METEOR's protocol can transmit it: without line breaks and field separators, and not empty."""
  return " ".join(text.replace("|||", " ").split()) or if_empty
