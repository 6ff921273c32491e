"""A headless Chromium that a test drives by the DevTools protocol over two pipes: nothing but the browser is needed."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEY_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Escape": 27, "Home": 36,
             "End": 35, "Enter": 13}


def find_chromium() -> str | None:
  return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
  """One tab."""

  def __init__(self, program: str, profile: pathlib.Path, size: tuple[int, int] = (1280, 900)):
    """`profile`: an empty folder for what the browser keeps. Close it by `close`, or with `contextlib.closing`."""
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()

    def as_it_expects():                              # commands come in at descriptor 3, answers go out at 4
      for source, target in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
        os.dup2(source, target)

    self._process = subprocess.Popen(
        [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
         f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
         "about:blank"],
        preexec_fn=as_it_expects, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    self._number, self._session, self._unread, self.events = 0, None, b"", []
    (page,) = [target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page"]
    self._session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network"):
      self(f"{domain}.enable")
    self.resize(*size)

  def __call__(self, method: str, **parameters) -> dict:
    """Returns the answer to a command of the protocol."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while (answer := self._next()).get("id") != self._number:
      self.events.append(answer)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']}")
    return answer["result"]

  def _next(self, seconds: float = 60) -> dict:
    while b"\0" not in self._unread:
      if not select.select([self._read], [], [], seconds)[0]:
        raise TimeoutError(f"Chromium has said nothing for {seconds} s")
      data = os.read(self._read, 1 << 20)
      if not data:
        raise RuntimeError("Chromium has ended")
      self._unread += data
    message, _, self._unread = self._unread.partition(b"\0")
    return json.loads(message)

  def resize(self, width: int, height: int, dark: bool = False) -> None:
    self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self("Emulation.setEmulatedMedia", features=[scheme])

  def open(self, path: pathlib.Path) -> None:
    """Opens a file, and waits until its script is done."""
    self.events.clear()
    self("Page.navigate", url=path.resolve().as_uri())
    self.until("document.body && document.body.dataset.ready && document.readyState == 'complete'")

  def value(self, expression: str):
    """Returns what JavaScript makes of an expression."""
    found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in found:
      raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
    return found["result"].get("value")

  def until(self, expression: str, seconds: float = 30) -> None:
    """Waits until an expression holds."""
    end = time.monotonic() + seconds
    while not self.value(f"Boolean({expression})"):
      if time.monotonic() > end:
        raise TimeoutError(expression)
      time.sleep(0.02)

  def frame(self) -> None:
    """Waits until what was changed is drawn."""
    self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

  def key(self, name: str) -> None:
    """Presses a key: a character, or one of KEY_CODES."""
    common = {"key": name, "windowsVirtualKeyCode": KEY_CODES.get(name, ord(name[0].upper()))}
    self("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": name} if len(name) == 1 else {}))
    self("Input.dispatchKeyEvent", type="keyUp", **common)
    self.frame()

  def pointer(self, x: float, y: float) -> None:
    self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    self.frame()

  def picture(self, path: pathlib.Path) -> None:
    """Writes a PNG of what is in sight."""
    self.frame()
    path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

  def close(self) -> None:
    with contextlib.suppress(Exception):
      self._session = None
      self("Browser.close")
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._read)
    os.close(self._write)
