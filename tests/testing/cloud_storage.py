"""Cloud Storage in memory, over HTTP: the part of its JSON and XML API that libraries use to read and write a run.

They ask storage.googleapis.com and www.googleapis.com over TLS. A process whose environment has what `environment` gives
comes here instead: through a proxy, which this is too, and by a certificate that its own authority has signed.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import collections
import contextlib
import http.server
import json
import pathlib
import re
import socketserver
import ssl
import threading
import time
import urllib.parse

import trustme

HOSTS = ("storage.googleapis.com", "www.googleapis.com", "oauth2.googleapis.com")


class CloudStorage:
  """All buckets exist, and are closed.

  Attributes:
    objects: (bucket, name) -> Object.
    asked: how often each kind of request came.
    uploads: number -> bucket, name, query and content so far of one that goes on.
    unknown: requests that nothing here answers.
    busy: a function of (method, path) that says whether a request is answered with 503.
  """

  def __init__(self, folder: pathlib.Path):
    """`folder` gets the authority's certificate."""
    self.objects, self.asked, self.unknown = {}, collections.Counter(), []
    self.busy = lambda method, path: False
    self.lock, self._generation, self.uploads = threading.RLock(), 1_700_000_000_000_000, {}
    authority = trustme.CA()
    self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(self.context)
    self._authority = folder / "authority.pem"
    authority.cert_pem.write_to_path(self._authority)

  @contextlib.contextmanager
  def serving(self):
    """Inside, it answers."""
    storage = self

    class ForThis(_Handler):
      cloud = storage
    with _Server(("127.0.0.1", 0), ForThis) as server:
      self.address = f"127.0.0.1:{server.server_address[1]}"
      threading.Thread(target=server.serve_forever, daemon=True).start()
      try:
        yield self
      finally:
        server.shutdown()

  @property
  def environment(self) -> dict[str, str]:
    """What brings a process here: TensorFlow, TensorStore, google-cloud-cpp (ArrayRecord) and urllib."""
    names = "CURL_CA_BUNDLE", "SSL_CERT_FILE", "TENSORSTORE_CA_BUNDLE", "REQUESTS_CA_BUNDLE"
    return {name: str(self._authority) for name in names} | {
        "https_proxy": f"http://{self.address}", "no_proxy": "127.0.0.1,localhost",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "NO_GCE_CHECK": "true",
        "STORAGE_EMULATOR_HOST": f"http://{self.address}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://{self.address}", "CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://{self.address}"}

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    with self.lock:
      return sorted(name for of, name in self.objects if of == bucket and name.startswith(prefix))

  def put(self, bucket: str, name: str, content: bytes) -> "Object":
    with self.lock:
      self._generation += 1
      self.objects[bucket, name] = Object(bucket, name, content, self._generation)
      return self.objects[bucket, name]

  def begin(self, bucket: str, name: str, query: dict) -> str:
    with self.lock:
      self._generation += 1
      self.uploads[str(self._generation)] = [bucket, name, query, bytearray()]
      return str(self._generation)


class Object:
  """Content of one generation, never changed."""

  def __init__(self, bucket: str, name: str, content: bytes, generation: int):
    self.bucket, self.name, self.content, self.generation = bucket, name, content, generation
    self.updated = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())

  def described(self) -> dict:
    return {"kind": "storage#object", "id": f"{self.bucket}/{self.name}/{self.generation}", "bucket": self.bucket,
            "name": self.name, "size": str(len(self.content)), "generation": str(self.generation),
            "metageneration": "1", "updated": self.updated, "timeCreated": self.updated, "etag": str(self.generation),
            "storageClass": "STANDARD", "contentType": "application/octet-stream"}


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
  daemon_threads, request_queue_size = True, 128

  def handle_error(self, request, client_address):
    """Clients hang up when they have what they want, or are killed."""


class _Answer(Exception):
  """A status instead of what was asked for."""

  def __init__(self, status: int, reason: str = ""):
    super().__init__(reason)
    self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version, cloud = "HTTP/1.1", None
  disable_nagle_algorithm = True

  def log_message(self, *arguments):
    pass

  def do_CONNECT(self):
    self.send_response(200, "Connection established")
    self.end_headers()
    self.connection = self.cloud.context.wrap_socket(self.connection, server_side=True)
    self.rfile, self.wfile = self.connection.makefile("rb"), socketserver._SocketWriter(self.connection)
    self.close_connection = False

  def do_GET(self):
    self.answer()

  do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET

  def answer(self):
    url = urllib.parse.urlsplit(self.path)
    self.query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
    body = self.body()
    try:
      if self.cloud.busy(self.command, url.path):
        raise _Answer(503, "busy")
      for method, pattern, do in ROUTES:
        found = re.fullmatch(pattern, url.path)
        if method == self.command and found:
          self.cloud.asked[do.__name__] += 1
          with self.cloud.lock:
            return do(self, *map(urllib.parse.unquote, found.groups()), body=body)
      self.cloud.unknown.append(f"{self.command} {self.path}")
      raise _Answer(404, "no such request")
    except _Answer as answer:
      self.cloud.asked[answer.status] += 1
      self.send({"error": {"code": answer.status, "message": str(answer)}} if answer.status != 304 else b"",
                answer.status)

  def body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def send(self, content: bytes | dict, status: int = 200, **headers: str):
    if isinstance(content, dict):
      content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    if status != 304:
      self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD" and status != 304:
      self.wfile.write(content)

  # What is asked.

  def found(self, bucket: str, name: str) -> Object:
    of = self.cloud.objects.get((bucket, name))
    self.check(of, self.query)
    if of is None:
      raise _Answer(404, f"no such object: {bucket}/{name}")
    return of

  def check(self, of: Object | None, query: dict):
    generation = str(of.generation) if of else "0"
    if query.get("ifGenerationMatch", generation) != generation:
      raise _Answer(412, "another generation")
    if query.get("ifGenerationNotMatch") == generation and of:
      raise _Answer(304)

  def bucket(self, bucket, body):
    self.send({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US", "storageClass": "STANDARD",
               "metageneration": "1"})

  def layout(self, bucket, body):
    self.send({"kind": "storage#storageLayout", "bucket": bucket, "location": "US",
               "hierarchicalNamespace": {"enabled": False}})

  def permissions(self, bucket, body):
    self.send({"kind": "storage#testIamPermissionsResponse"})

  def list(self, bucket, body):
    if "Authorization" not in self.headers and self.query.get("fields") == "kind":
      raise _Answer(401, "who are you?")
    prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
    first, last = self.query.get("startOffset", ""), self.query.get("endOffset")
    rows = []                                       # (name, is a prefix), as the bucket orders them
    for name in self.cloud.names(bucket, prefix):
      if name < first or (last and name >= last):
        continue
      inner, cut, _ = name[len(prefix):].partition(delimiter) if delimiter else (name, "", "")
      row = (prefix + inner + delimiter, True) if cut else (name, False)
      if row not in rows[-1:]:
        rows.append(row)
    start, most = int(self.query.get("pageToken", 0)), int(self.query.get("maxResults", 1000))
    page = rows[start:start + most]
    answer = {"kind": "storage#objects", "prefixes": [name for name, whole in page if whole],
              "items": [self.cloud.objects[bucket, name].described() for name, whole in page if not whole]}
    if start + most < len(rows):
      answer["nextPageToken"] = str(start + most)
    self.send({key: value for key, value in answer.items() if value})

  def stat(self, bucket, name, body):
    if self.query.get("alt") == "media":
      return self.read(bucket, name, body)
    self.send(self.found(bucket, name).described())

  def read(self, bucket, name, body):
    of = self.found(bucket, name)
    size = len(of.content)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    facts = {"x_goog_generation": str(of.generation), "x_goog_metageneration": "1",
             "x_goog_stored_content_length": str(size), "ETag": str(of.generation)}
    if not asked:
      return self.send(of.content, **facts)
    first, last = asked.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
      raise _Answer(416, "no such range")
    self.send(of.content[start:end], 206, Content_Range=f"bytes {start}-{end - 1}/{size}", **facts)

  def write(self, bucket, body):
    kind, name = self.query["uploadType"], self.query.get("name")
    if kind == "resumable":
      name = name or json.loads(body)["name"]
      number = self.cloud.begin(bucket, name, self.query)
      return self.send(b"", Location=f"https://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?upload_id={number}")
    if kind == "multipart":
      border = re.search(r"boundary=\"?([^\";]+)", self.headers["Content-Type"])[1].encode()
      facts, content = [part.partition(b"\r\n\r\n")[2] for part in body.split(b"--" + border)[1:3]]
      name, body = name or json.loads(facts)["name"], content[:-2]
    self.check(self.cloud.objects.get((bucket, name)), self.query)
    self.send(self.cloud.put(bucket, name, body).described())

  def go_on(self, bucket, body):
    bucket, name, query, content = self.cloud.uploads[self.query["upload_id"]]
    part = re.fullmatch(r"bytes (\*|\d+-\d+)/(\*|\d+)", self.headers.get("Content-Range", "bytes */*"))
    span, whole = part.groups()
    if span != "*":
      content[int(span.split("-")[0]):] = body
    elif body:
      content[:] = body
    if whole == "*" and "Content-Range" in self.headers or whole != "*" and int(whole) != len(content):
      return self.send(b"", 308, **({"Range": f"bytes=0-{len(content) - 1}"} if content else {}))
    self.check(self.cloud.objects.get((bucket, name)), query)
    self.send(self.cloud.put(bucket, name, bytes(content)).described())

  def copy(self, bucket, name, to_bucket, to_name, body):
    copied = self.cloud.put(to_bucket, to_name, self.found(bucket, name).content)
    size = str(len(copied.content))
    self.send({"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size, "objectSize": size,
               "resource": copied.described()})

  def compose(self, bucket, name, body):
    parts = [self.cloud.objects[bucket, part["name"]].content for part in json.loads(body)["sourceObjects"]]
    self.send(self.cloud.put(bucket, name, b"".join(parts)).described())

  def delete(self, bucket, name, body):
    self.found(bucket, name)
    del self.cloud.objects[bucket, name]
    self.send(b"", 204)


_B, _O = "/storage/v1/b/([^/]+)", "([^/]+)"
ROUTES = (
    ("GET", _B, _Handler.bucket),
    ("GET", f"{_B}/storageLayout", _Handler.layout),
    ("GET", f"{_B}/iam/testPermissions", _Handler.permissions),
    ("GET", f"{_B}/o/?", _Handler.list),
    ("GET", f"{_B}/o/{_O}", _Handler.stat),
    ("GET", f"/download{_B}/o/{_O}", _Handler.read),
    ("POST", f"/upload{_B}/o/?", _Handler.write),
    ("PUT", f"/upload{_B}/o/?", _Handler.go_on),
    ("POST", f"{_B}/o/{_O}/(?:rewriteTo|copyTo)/b/([^/]+)/o/{_O}", _Handler.copy),
    ("POST", f"{_B}/o/{_O}/compose", _Handler.compose),
    ("DELETE", f"{_B}/o/{_O}", _Handler.delete),
    ("GET", "/(?!storage/v1|upload/|download/)([^/]+)/(.+)", _Handler.read),
)
