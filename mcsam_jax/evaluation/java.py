"""The two Java programs behind the scores: METEOR 1.5 and the Penn Treebank tokenizer.

pycocoevalcap brings both as jars. Nothing else needs Java, so where it is
missing, crashes or hangs, `JavaUnavailable` says why, and the caller leaves out
that one score and keeps the rest.
"""

import contextlib
import pathlib
import shutil
import subprocess
import threading
import time

from pycocoevalcap.meteor import meteor as pycoco_meteor
from pycocoevalcap.tokenizer import ptbtokenizer

# What stands for an empty text, which METEOR's lines can't hold: words that match no other.
_NO_REFERENCE, _NO_HYPOTHESIS = "emptyreference", "emptyhypothesis"


class JavaUnavailable(Exception):
  """Java is missing, failed or took too long. The message is what a user reads."""


class Meteor:
  """METEOR as one process for many scores: starting it takes seconds, a pair of reports a millisecond.

  Used as a context manager, which ends the process. A failure is final: later
  calls repeat its reason instead of waiting again.
  """

  def __init__(self, start_seconds: float = 120.0, pair_seconds: float = 0.1):
    self._limits = start_seconds, pair_seconds
    self._process = None
    self._failure = ""

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._close()

  def score(self, references: list[str], hypotheses: list[str]) -> tuple[float, list[float]]:
    """Returns METEOR of all n pairs together, and of each of them.

    Raises:
      JavaUnavailable: there is no Java, or it failed or hung.
    """
    if self._failure:
      raise JavaUnavailable(self._failure)
    if self._process is None:
      self._process = self._start()
    seconds = self._limits[0] + self._limits[1] * len(references)
    late = threading.Timer(seconds, self._process.meteor_p.kill)
    began = time.monotonic()
    late.start()
    try:
      return self._process.compute_score(
          {i: [_one_line(text, _NO_REFERENCE)] for i, text in enumerate(references)},
          {i: [_one_line(text, _NO_HYPOTHESIS)] for i, text in enumerate(hypotheses)})
    except (OSError, ValueError) as error:                  # a closed pipe, or an answer that is no number
      self._close()
      hung = time.monotonic() - began >= seconds
      self._fail(f"took more than {seconds:.0f} s" if hung else f"ended early ({type(error).__name__})")
    finally:
      late.cancel()

  def _start(self) -> pycoco_meteor.Meteor:
    if not shutil.which("java"):
      self._fail("is not installed")
    try:
      return pycoco_meteor.Meteor()
    except OSError as error:
      self._fail(f"does not start ({error})")

  def _fail(self, what: str) -> None:
    self._failure = f"METEOR needs Java, which {what}"
    raise JavaUnavailable(self._failure)

  def _close(self) -> None:
    if self._process is None:
      return
    owner, self._process = self._process, None
    if owner.lock.locked():                       # a failed call leaves it so, and __del__ would wait forever
      owner.lock.release()
    process = owner.meteor_p
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
      with contextlib.suppress(OSError):                    # what is left in the buffer has no reader
        pipe.close()


def ptb_tokenize(texts: list[str], seconds: float = 300.0) -> list[str]:
  """Returns the texts lower-cased, in Penn Treebank tokens, without punctuation, as pycocoevalcap does.

  Its list of punctuation has brackets as -LRB-, the tokens -lrb-: so they stay, in the literature as here.
  pycocoevalcap's own call writes the reports into its package folder; here they pass through a pipe.

  Raises:
    JavaUnavailable: there is no Java, or it failed or hung.
  """
  if not shutil.which("java"):
    raise JavaUnavailable("PTB tokens need Java, which is not installed")
  jar = pathlib.Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
  command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar),
             "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
  try:
    done = subprocess.run(command, input="".join(" ".join(text.split()) + "\n" for text in texts),
                          capture_output=True, encoding="utf-8", timeout=seconds, check=True)
  except subprocess.TimeoutExpired as error:
    raise JavaUnavailable(f"PTB tokens need Java, which took more than {seconds:.0f} s") from error
  except (OSError, subprocess.CalledProcessError, UnicodeError) as error:
    raise JavaUnavailable(f"PTB tokens need Java, which failed ({type(error).__name__})") from error
  lines = done.stdout.split("\n")[:-1]
  if len(lines) != len(texts):
    raise JavaUnavailable(f"PTB tokens need Java, which gave {len(lines)} lines for {len(texts)} reports")
  return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in lines]


def _one_line(text: str, if_empty: str) -> str:
  """Returns `text` as METEOR's protocol can carry it: no line break, no field separator, not empty."""
  return " ".join(text.replace("|||", " ").split()) or if_empty
