"""Set-up: the Makefile, the wheel, and a machine with neither Java nor a compiler."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, tiny_bert
from tests.test_cli import can_mount

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment())


@pytest.fixture
def bare_checkout(tmp_path) -> Path:
    "What the Makefile looks at, without .venv."
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@needs_make
@pytest.mark.parametrize("version", ["3.10.13", "3.14.0", "2.7.18"])
@pytest.mark.parametrize("goal", ["lab", "test", "run"])
def test_unsupported_python_gets_one_line(version, goal, bare_checkout):
    python = bare_checkout / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit 0\nexit 1\n')
    python.chmod(0o755)
    done = make(goal, f"PYTHON={python}", cwd=bare_checkout)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and len(lines) == 1 and "3.11" in lines[0] and version in lines[0], done
    assert not (bare_checkout / ".venv").exists()


def stub_environment(checkout: Path) -> None:
    "An environment whose python only writes down what it is asked to install."
    (checkout / ".venv/bin").mkdir(parents=True)
    for name in ("python", "klue-course"):
        path = checkout / ".venv/bin" / name
        path.write_text('#!/bin/sh\necho "$@" >> calls.txt\n')
        path.chmod(0o755)


@needs_make
def test_environment_is_made_once_and_again_when_settings_change(bare_checkout):
    stub_environment(bare_checkout)
    calls = bare_checkout / "calls.txt"

    def installs() -> int:
        calls.unlink(missing_ok=True)
        assert make("lab", f"PYTHON={sys.executable}", "ARGS=--no-browser", cwd=bare_checkout).returncode == 0
        assert "lab workspace -- --no-browser" in calls.read_text()
        return calls.read_text().count("pip install")

    assert installs() == 1   # missing
    assert installs() == 0   # fresh
    (bare_checkout / "settings.ini").touch()
    assert installs() == 1   # out of date
    shutil.rmtree(bare_checkout / ".venv")
    stub_environment(bare_checkout)
    assert installs() == 1   # interrupted: no stamp


@needs_make
def test_clean_never_touches_the_workspace(bare_checkout):
    for name in (".venv", "workspace", "build", "out"):
        (bare_checkout / name).mkdir()
        (bare_checkout / name / "파일").write_text("x")
    assert make("clean", cwd=bare_checkout).returncode == 0
    assert (bare_checkout / "workspace/파일").exists()
    assert not (bare_checkout / ".venv").exists() and not (bare_checkout / "out").exists()


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "The wheel, built from a copy of the tracked files and unpacked outside the checkout."
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".venv", ".git", "__pycache__", "*.egg-info", "build", "workspace", "out", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=skip)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], check=True, timeout=300)
    wheel, = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300)
    return folder / "site"


def installed_command(site: Path, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "klue_course", *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment(PYTHONPATH=str(site)))


def test_wheel_holds_assets_and_notebooks(installed):
    inside = {str(path.relative_to(ROOT / "nbs")) for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in str(path)}
    assert {str(path.relative_to(installed / "klue_course/_nbs")) for path in (installed / "klue_course/_nbs").rglob("*.ipynb")} == inside
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "klue_course/assets").rglob("*") if path.is_file()}
    assert {str(path.relative_to(installed)) for path in (installed / "klue_course/assets").rglob("*") if path.is_file()} == assets


def test_installed_package_lists_starts_runs_and_checks(installed, tmp_path):
    where = subprocess.run([sys.executable, "-c", "import klue_course; print(klue_course.__file__)"], cwd=tmp_path, capture_output=True, text=True,
                           env=environment(PYTHONPATH=str(installed)))
    assert where.stdout.startswith(str(installed))
    rows = json.loads(installed_command(installed, "list", "--json", cwd=tmp_path).stdout)
    assert any(row["id"] == "02_0" and row["ready"] for row in rows)
    assert installed_command(installed, "start", "작업", cwd=tmp_path).returncode == 0
    done = installed_command(installed, "run", "f05", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out/f05.html").is_file(), done.stderr
    checked = installed_command(installed, "check", "작업/labs/02_0_korean_preprocessing.ipynb", "--json", cwd=tmp_path)
    assert checked.returncode == 1 and json.loads(checked.stdout)[0]["passed"] == 0


def test_installed_package_trains(installed, tmp_path):
    tiny_bert(tmp_path / "모델")
    done = installed_command(installed, "train", "nsmc", "--data", "mini", "--model", "모델", "--out", "out", "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0 and "accuracy" in done.stderr, done.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))["n"] == 200


# ---------------------------------------------------------------- no Java, no compiler


HIDE = """
for place in /usr/lib/jvm /usr/java /opt/java /opt/jdk; do [ -d $place ] && mount -t tmpfs tmpfs $place; done
for tool in java javac gcc g++ cc c++ clang make; do
  for found in $(type -aP $tool); do mount --bind /dev/null $found; done
done
if java -version 2>/dev/null || gcc --version 2>/dev/null; then exit 9; fi
exec "$@"
"""


@pytest.mark.skipif(not can_mount(), reason="needs root and unshare to hide Java and the compilers")
def test_everything_works_without_java_and_compiler():
    env = {key: value for key, value in environment().items() if key not in ("JAVA_HOME", "CC", "CXX")}
    words = ["unshare", "-m", "bash", "-c", HIDE, "-", sys.executable, "-m", "klue_course", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {"Mecab", "Okt", "Komoran", "Hannanum", "Kkma", "kss", "font"} <= set(rows)
    assert all(re.search("아버지", rows[name]["found"]) for name in ("Mecab", "Okt", "Komoran", "Hannanum", "Kkma"))
    assert os.path.basename(rows["font"]["found"]).startswith("Nanum")
