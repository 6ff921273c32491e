"""Installation by demo.sh, lint.sh and test.sh: with uv and pip's settings, or with pip; Python and uv are fakes."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]

PYTHON = r'''
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; touch .venv/has-pip ;;
  *"import pip"*) [ -e .venv/has-pip ] || exit 1 ;;
  *"config list"*) cat pip-config ;;
  *"--only-binary uv uv") [ -e uv-status ] || exit 1; cp uv .venv/bin/uv ;;
  *"pip"*) exit "$(cat pip-status)" ;;
esac'''
UV = r'''
env | grep -E "^(UV_|SSL_CERT)" | sort >uv-settings
exit "$(cat uv-status)"'''


class Checkout:
  """A folder with the launcher's files, whose Python and uv log their arguments in `calls`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    (folder / "launch").mkdir()
    for name in ("pyproject.toml", "launch/install.sh", "launch/constraints.txt"):
      shutil.copy(ROOT / name, folder / name)
    for name, body in (("python", PYTHON), ("uv", UV)):
      (folder / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>calls\n{body}\n')
      (folder / name).chmod(0o755)
    self.write("pip-config", "")
    self.write("pip-status", "0")
    self.write("uv-status", "0")

  def write(self, name: str, text: str):
    (self.folder / name).write_text(text)

  def install(self, **env: str) -> tuple[int, list[str]]:
    """Returns the exit status of an installation, and the installers that installed the package, with its extra."""
    self.write("calls", "")
    clean = {key: value for key, value in os.environ.items()
             if not key.startswith(("UV_", "PIP_", "SSL_CERT")) and key != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(["bash", "-c", "set -euo pipefail; source launch/install.sh; install test"], cwd=self.folder,
                         env=clean | {"PYTHON": str(self.folder / "python")} | env, capture_output=True, timeout=30)
    calls = (self.folder / "calls").read_text().splitlines()
    return run.returncode, [("uv" if call.startswith("uv") else "pip") + " again" * ("--force-reinstall" in call)
                            for call in calls if call.endswith("-c launch/constraints.txt -e .[test]")]

  def uv_settings(self) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (self.folder / "uv-settings").read_text().splitlines())


@pytest.fixture
def checkout(tmp_path):
  return Checkout(tmp_path)


def test_installs_once_and_again_when_the_dependencies_change(checkout):
  assert checkout.install() == (0, ["uv"])
  assert checkout.install() == (0, [])
  checkout.write("pyproject.toml", "changed")
  assert checkout.install() == (0, ["uv"])


def test_uv_gets_the_settings_of_pip(checkout):
  checkout.install()
  assert checkout.uv_settings() == {"UV_INDEX_STRATEGY": "unsafe-best-match"}
  checkout.write("pyproject.toml", "changed")
  checkout.write("pip-config", """:env:.find-links='/wheels'
:env:.default-timeout='180'
:env:.disable-pip-version-check='1'
freeze.all='1'
global.cert='/etc/ca.crt'
global.constraint='/etc/a.txt'
global.extra-index-url='https://one/simple\\nhttps://two/simple'
global.find-links='/wheels'
global.index-url='https://user:a=b@mirror/simple'
global.trusted-host='mirror'
""")
  assert checkout.install(PYTHONDONTWRITEBYTECODE="1") == (0, ["uv"])
  assert checkout.uv_settings() == {
      "SSL_CERT_FILE": "/etc/ca.crt", "UV_COMPILE_BYTECODE": "1", "UV_CONSTRAINT": "/etc/a.txt",
      "UV_DEFAULT_INDEX": "https://user:a=b@mirror/simple", "UV_FIND_LINKS": "/wheels,/wheels",
      "UV_HTTP_TIMEOUT": "180", "UV_INDEX": "https://one/simple https://two/simple",
      "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_INSECURE_HOST": "mirror"}


@pytest.mark.parametrize("settings", [
    "global.require-hashes='1'\n", "global.proxy='http://proxy:8080'\n", "install.no-binary=':all:'\n",
    ":env:.index-url='https://one/simple'\nglobal.index-url='https://two/simple'\n"])
def test_pip_installs_if_uv_would_not_follow_its_settings(checkout, settings):
  checkout.write("pip-config", settings)
  assert checkout.install() == (0, ["pip"])


def test_pip_installs_if_uv_is_absent_or_fails(checkout):
  checkout.write("uv-status", "2")
  assert checkout.install() == (0, ["uv", "pip"])
  (checkout.folder / "uv-status").unlink()
  shutil.rmtree(checkout.folder / ".venv")
  assert checkout.install() == (0, ["pip"])


def test_interrupted_installation_is_done_again(checkout):
  checkout.write("uv-status", "130")                       # Ctrl-C
  assert checkout.install() == (130, ["uv"])
  checkout.write("uv-status", "0")
  assert checkout.install() == (0, ["uv again"])
  assert checkout.install() == (0, [])
  (checkout.folder / ".venv/has-pip").unlink()             # as if creating the environment had been interrupted
  checkout.write("pyproject.toml", "changed")
  assert checkout.install() == (0, ["uv"])


def test_failed_installation_is_an_error_and_not_taken_for_complete(checkout):
  checkout.write("uv-status", "1")
  checkout.write("pip-status", "1")
  assert checkout.install() == (1, ["uv", "pip"])
  checkout.write("pip-status", "0")
  assert checkout.install() == (0, ["uv again", "pip again"])
