"""Keeps restricted data out of buckets that everyone can read.

A config says `data.restricted` of a data set such as MIMIC-CXR, whose terms forbid to share it. Whether a bucket is
open is asked of Cloud Storage as a stranger would, without credentials, so no right on the bucket is needed:
may anyone list its objects, and does it grant reading them (`storage.objects.get`) to everyone? Not seen this way, but
by the launchers, which read the bucket's policy: what is open to anybody with a Google account (allAuthenticatedUsers).
Not seen by either: single objects shared by access lists of their own. Public access prevention rules out all of it.
"""

from collections.abc import Callable, Iterator
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import jax
from ml_collections import ConfigDict

from mcsam_jax.errors import UserError

API = "https://storage.googleapis.com/storage/v1/b/{}"
LISTING = API + "/o?maxResults=1&fields=kind"
GRANTS = API + "/iam/testPermissions?permissions=storage.objects.get&permissions=storage.objects.list"
TRIES = 5                           # with waits of 1, 2, 4 and 8 seconds between them


def check_bucket_private(config: ConfigDict, workdir: str = "", ask: Callable = urllib.request.urlopen,
                  sleep: Callable[[float], None] = time.sleep) -> None:
  """Raises UserError if a restricted data set would be read from, or written to, a bucket that everyone can read.

  Looked at are the workdir, every gs:// among the fields of `data` and `prepare`, and the folder of compiled programs:
  those hold no data, but a run that is to be closed is closed as a whole. Other data sets and paths ask nothing.

  Args:
    config: the whole tree.
    workdir: of the run, if there is one.
    ask: opens a URL like urllib.request.urlopen.
    sleep: waits that many seconds.

  Raises:
    UserError: a bucket is open, or could not be asked about and is not among those that the environment variable
      MCSAM_PRIVATE_BUCKETS vouches for (names, separated by spaces).
  """
  if not config.data.restricted:
    return
  vouched = os.environ.get("MCSAM_PRIVATE_BUCKETS", "").split()
  cache = jax.config.jax_compilation_cache_dir or ""
  texts = [("the workdir", str(workdir)), ("JAX_COMPILATION_CACHE_DIR", cache),
           *_texts(config.data, "data"), *_texts(config.prepare, "prepare")]
  named = {bucket: name for name, text in reversed(texts) for bucket in re.findall(r"gs://([^/\s,\"']+)", text)}
  for bucket, name in reversed(named.items()):
    try:
      public = is_public(bucket, ask, sleep)
    except OSError as error:
      if bucket in vouched:
        continue
      raise UserError(f"{name} is on gs://{bucket}, and storage.googleapis.com could not be asked whether everyone can "
                      f"read that ({error}), which the restricted data set {config.data.name} must not allow: try "
                      f"again, or set MCSAM_PRIVATE_BUCKETS={bucket} if you know that it is closed") from None
    if public:
      raise UserError(f"{name} is on gs://{bucket}, which everyone can read, but the data set {config.data.name} is "
                      f"restricted: close it with `gcloud storage buckets update gs://{bucket} "
                      "--public-access-prevention`, or use another bucket")


def is_public(bucket: str, ask: Callable = urllib.request.urlopen, sleep: Callable[[float], None] = time.sleep) -> bool:
  """Returns whether a stranger may list the objects of a Cloud Storage bucket or read them.

  Raises:
    OSError: no answer, or none that tells, after TRIES attempts.
  """
  name = urllib.parse.quote(bucket, safe="")
  if _answer(LISTING.format(name), ask, sleep) is not None:
    return True
  return bool((_answer(GRANTS.format(name), ask, sleep) or {}).get("permissions"))


def _answer(url: str, ask: Callable, sleep: Callable[[float], None]) -> dict | None:
  """Returns the JSON of a URL, None if strangers are turned away (or there is no such bucket)."""
  for attempt in range(TRIES):
    if attempt:
      sleep(2 ** (attempt - 1))
    try:
      with ask(url, timeout=20) as response:
        return json.load(response)
    except urllib.error.HTTPError as error:          # an OSError too, so it comes first
      if error.code in (401, 403, 404):
        return None
      failure = error
    except (OSError, ValueError) as error:           # no network; a page of some proxy instead of JSON
      failure = error
  raise OSError(str(failure))


def _texts(fields: ConfigDict, name: str) -> Iterator[tuple[str, str]]:
  """Yields the name and value of every text among the fields, at any depth."""
  for key, value in fields.items():
    if isinstance(value, ConfigDict):
      yield from _texts(value, f"{name}.{key}")
    elif isinstance(value, str):
      yield f"{name}.{key}", value
