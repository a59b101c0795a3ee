"""The command line as a user meets it: what it prints where, its exit codes, and one clear line for every wrong input."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from klue_course import workspace
from tests.conftest import GUARD, ROOT, command, environment

LAB = next(notebook for notebook in workspace.syllabus() if notebook.id == "02_0")
NSMC = "id\tdocument\tlabel\n1\t좋은 영화였다\t1\n2\t지루했다\t0\n"


def one_clear_line(done: subprocess.CompletedProcess, *words: str) -> None:
    "The contract for wrong input."
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize("arguments, words", [
    (["lsit"], ["lsit"]),
    (["run", "99z"], ["99z", "02_0"]),
    (["run", "10_2"], ["10_2", "준비 중"]),
    (["run", "02a", "--profile", "huge"], ["huge", "mini"]),
    (["run", "02a", "--jobs", "0"], ["--jobs"]),
    (["run", "02a", "--jobs", "two"], ["--jobs", "integer"]),
    (["run", "--nonsense"], ["--nonsense"]),
    (["bench", "nothing"], ["nothing", "cleaning"]),
    (["progress", "없는 폴더"], ["없는 폴더", "start"]),
    (["check"], ["PATH"]),
    (["check", "없는.ipynb"], ["없는.ipynb"]),
    (["list", "--lang", "fr"], ["fr", "ko"]),
    (["train", "nsmc", "--data", "mini", "--model", "bert-huge", "--out", "x"], ["bert-huge"]),
    (["predict", "nsmc"], ["--model"]),
    (["chat", "gpt"], ["chat"]),
])
def test_wrong_arguments(arguments, words, tmp_path):
    done = command(*arguments, cwd=tmp_path)
    one_clear_line(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_messages_in_english(tmp_path):
    for done in (command("run", "10_2", "--lang", "en", cwd=tmp_path), command("run", "10_2", cwd=tmp_path, KLUE_COURSE_LANG="en")):
        one_clear_line(done, "not there yet")
        assert not re.search("[가-힣]", done.stderr)


def test_list_as_json_is_one_line():
    done = command("list", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and done.stderr == ""
    assert {row["id"] for row in rows if row["ready"]} >= {"02a", "02_0", "c02_0", "f00"}
    assert all({"id", "title", "seconds", "peak_mb", "needs"} <= set(row) for row in rows)


def test_help_and_version():
    assert command().returncode == 0 and "doctor" in command().stdout
    assert command("--version").stdout.strip() == re.search(r'"(.+)"', (ROOT / "klue_course/__init__.py").read_text())[1]
    assert "report.json" in command("run", "--help").stdout


def test_closed_pipe_is_quiet():
    shell = f'"{sys.executable}" -m klue_course list | head -1'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stderr == ""


# ---------------------------------------------------------------- files


BAD_NOTEBOOKS = {
    "빈.ipynb": b"",
    "글.ipynb": "그냥 글입니다".encode(),
    "배열.ipynb": b"[1, 2]",
    "옛글.ipynb": "완성형으로 쓴 글".encode("cp949"),
    "그림.ipynb": b"\x89PNG\r\n\x1a\n\0\0",
    "반쪽.ipynb": b'{"cells": [',
    "연습 없음.ipynb": nbformat.writes(nbformat.v4.new_notebook()).encode(),
}


@pytest.mark.parametrize("name", BAD_NOTEBOOKS)
def test_check_refuses_what_is_no_lab(name, tmp_path):
    (tmp_path / name).write_bytes(BAD_NOTEBOOKS[name])
    done = command("check", name, "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and name in done.stderr
    assert json.loads(done.stdout)[0]["error"]
    assert (tmp_path / name).read_bytes() == BAD_NOTEBOOKS[name]


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "가.ipynb").write_bytes(b"")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('check("02_0.remove_html", remove_html)')])
    nbformat.write(nb, tmp_path / "나.ipynb")
    done = command("check", tmp_path, "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 2 and {Path(row["file"]).name: row["total"] > 0 for row in rows} == {"가.ipynb": False, "나.ipynb": True}


BAD_DATA = {
    "missing folder": None,
    "empty file": b"",
    "binary": b"id\tdocument\tlabel\n\0\0",
    "cp949": NSMC.encode("cp949"),
    "column-short": (NSMC + "3\t짧은 줄\n").encode(),
    "unknown label": (NSMC + "3\t글\t7\n").encode(),
    "wrong header": NSMC.replace("document", "text").encode(),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_ends_in_one_line(case, tmp_path):
    folder = tmp_path / "nsmc"
    if BAD_DATA[case] is not None:
        folder.mkdir()
        (folder / "ratings_train.txt").write_bytes(BAD_DATA[case])
    done = command("bench", "cleaning", cwd=tmp_path, KLUE_COURSE_DATA=str(folder))
    one_clear_line(done, "nsmc")
    if case in ("column-short", "unknown label"):
        assert "4" in done.stderr.replace(str(tmp_path), "")  # the row


@pytest.mark.parametrize("content", [NSMC.encode("utf-8-sig"), NSMC.replace("\n", "\r\n").encode()], ids=["BOM", "CRLF"])
def test_bom_and_crlf_are_fine(content, tmp_path):
    (tmp_path / "ratings_train.txt").write_bytes(content)
    done = command("bench", "cleaning", "--json", KLUE_COURSE_DATA=str(tmp_path))
    assert done.returncode == 0 and json.loads(done.stdout)[0]["same"] == "2/2"


def test_lone_surrogate_in_a_path(tmp_path):
    done = subprocess.run([sys.executable, "-m", "klue_course", "check", os.fsdecode(b"\xff.ipynb"), "--json"], capture_output=True, cwd=tmp_path, env=environment(), timeout=60)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1


def test_relative_data_folder_reaches_the_notebooks(tmp_path):
    (tmp_path / "nsmc").mkdir()
    source = ("import os; from klue_course import workspace; from klue_course.cli import main; "
              "workspace.run_notebooks = lambda *_: print(os.environ['KLUE_COURSE_DATA']) or iter(()); main(['run', 'f09'])")
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment(KLUE_COURSE_DATA="nsmc"))
    assert done.stdout.strip() == str((tmp_path / "nsmc").resolve()), done.stderr


# ---------------------------------------------------------------- folders that cannot be written to


def limited(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    "Run the command where no file may grow beyond 2 KB, as on a full disk."
    source = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
              "from klue_course.cli import main; main()")
    return subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60, env=environment())


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_start_on_a_full_disk_leaves_no_half_file(tmp_path):
    one_clear_line(limited(["start", "내 작업"], tmp_path))
    assert [path for path in tmp_path.rglob("*.ipynb")] == []
    assert command("start", "내 작업", cwd=tmp_path).returncode == 0, "and the next start goes on"


def read_only(folder: Path):
    "Make a folder read-only even for root: an empty read-only file system over it, in a mount namespace."
    mount = f"mount -t tmpfs -o ro tmpfs '{folder}'"
    return ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-m", "klue_course"]


def can_mount() -> bool:
    return shutil.which("unshare") is not None and hasattr(os, "geteuid") and os.geteuid() == 0 \
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs root and unshare for a read-only file system")
@pytest.mark.parametrize("arguments", [["start", "자리"], ["run", "f09", "--out", "자리"], ["start", "자리/안"]])
def test_read_only_folder(arguments, tmp_path):
    (tmp_path / "자리").mkdir()
    done = subprocess.run(read_only(tmp_path / "자리") + arguments, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment())
    one_clear_line(done, "자리")


def test_target_is_a_file(tmp_path):
    (tmp_path / "파일").write_text("내 글", encoding="utf-8")
    one_clear_line(command("start", "파일", cwd=tmp_path), "파일")
    assert command("run", "f09", "--out", "파일", cwd=tmp_path).returncode == 2
    assert (tmp_path / "파일").read_text(encoding="utf-8") == "내 글"


# ---------------------------------------------------------------- Ctrl-C


def interrupt(arguments: list[str], cwd: Path, ready) -> subprocess.CompletedProcess:
    "Press Ctrl-C as soon as `ready()` holds."
    process = subprocess.Popen([sys.executable, "-m", "klue_course", *arguments], cwd=cwd, env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # a background shell ignores it
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_run_writes_notebooks_pages_and_report(tmp_path):
    log = tmp_path / "connections.txt"
    done = command("run", "f09", "c02_1", "--out", "나온 것", cwd=tmp_path, PYTHONPATH=str(GUARD), KLUE_COURSE_CONNECTIONS=str(log))
    assert done.returncode == 0 and not log.exists(), done.stderr
    report = json.loads((tmp_path / "나온 것/report.json").read_text(encoding="utf-8"))
    assert report["profile"] == "mini" and [row["id"] for row in report["notebooks"]] == ["f09", "c02_1"]
    for row in report["notebooks"]:
        assert row["status"] == "passed" and row["seconds"] > 0 and row["peak_mb"] > 0 and row["error"] is None
        assert nbformat.read(tmp_path / f"나온 것/{row['id']}.ipynb", as_version=4).cells
        assert "<html" in (tmp_path / f"나온 것/{row['id']}.html").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_start_loses_nothing(tmp_path):
    (tmp_path / "작업/labs").mkdir(parents=True)
    mine = tmp_path / "작업" / LAB.file
    mine.write_text("내 답", encoding="utf-8")
    done = interrupt(["start", "작업"], tmp_path, lambda: any((tmp_path / "작업/lectures").glob("*.ipynb")))
    assert done.returncode in (0, 130, -signal.SIGINT) and "Traceback" not in done.stderr, done.stderr  # -SIGINT: it was already leaving
    assert command("start", "작업", cwd=tmp_path).returncode == 0
    assert mine.read_text(encoding="utf-8") == "내 답"
    written = [path for path in (tmp_path / "작업").rglob("*.ipynb") if path != mine]
    assert len(written) >= 1 and all(nbformat.read(path, as_version=4).cells for path in written)
    assert not list((tmp_path / "작업").rglob(".*.ipynb.*")), "no temporary files are left"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_run_ends_its_kernels(tmp_path):
    import psutil

    def kernels():
        return [process for process in psutil.process_iter(["cmdline"]) if "ipykernel_launcher" in " ".join(process.info["cmdline"] or [])]

    before = {process.pid for process in kernels()}
    done = interrupt(["run", "02a", "--out", "나온 것"], tmp_path, lambda: any(process.pid not in before for process in kernels()))
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    time.sleep(1)
    assert {process.pid for process in kernels()} <= before
    report = json.loads((tmp_path / "나온 것/report.json").read_text(encoding="utf-8"))
    assert report["profile"] == "mini"


# ---------------------------------------------------------------- the missing package


def test_missing_package_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Missing:\n    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'nbgrader': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n", encoding="utf-8")
    done = command("start", "작업", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    one_clear_line(done, "nbgrader", "pip install")
