"""The learner's side: copies without solutions, answers right and wrong, grading within limits, JupyterLab."""
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from klue_course import checking, workspace
from tests.conftest import command, environment

LABS = [notebook for notebook in workspace.syllabus() if notebook.ready and notebook.file.startswith("labs/")]


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    "A fresh workspace."
    folder = tmp_path_factory.mktemp("학습자")
    workspace.start(folder)
    return folder


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_untouched_copy_fails_every_exercise(lab, copies):
    done = command("check", copies / lab.file, "--json", timeout=300)
    row = json.loads(done.stdout)[0]
    assert done.returncode == 1 and row["passed"] == 0 and row["total"] == len(checking.lab_checks(lab.id)) >= 5
    assert all("NotImplementedError" in exercise["message"] for exercise in row["exercises"].values()), row


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_solutions_pass_every_exercise(lab):
    done = command("check", lab.path, "--json", timeout=300)
    row = json.loads(done.stdout)[0]
    assert done.returncode == 0 and row["passed"] == row["total"], [id for id, exercise in row["exercises"].items() if not exercise["passed"]]


def test_copies_have_no_solutions_and_no_outputs(copies):
    for path in copies.rglob("*.ipynb"):
        nb = nbformat.read(path, as_version=4)
        assert not re.search("(BEGIN|END) SOLUTION", path.read_text(encoding="utf-8"))
        assert not any(cell.get("outputs") for cell in nb.cells)


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_copy_keeps_everything_but_the_solution(lab, copies):
    source, copy = nbformat.read(lab.path, as_version=4), nbformat.read(copies / lab.file, as_version=4)
    changed = [cell for cell, ours in zip(copy.cells, source.cells, strict=True) if cell.source != ours.source]
    assert len(changed) == len(checking.lab_checks(lab.id))
    assert all("raise NotImplementedError()" in cell.source for cell in changed)


def lab_notebook(tmp_path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in (*sources, 'check("02_0.remove_html", remove_html)')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "제출.ipynb")
    return tmp_path / "제출.ipynb"


HOSTILE = {
    "never ends": "def remove_html(text):\n    while True: pass",
    "ignores the interrupt": "def remove_html(text):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "prints for ever": "def remove_html(text):\n    while True: print('x' * 1000)",
    "eats memory": "def remove_html(text):\n    kept = []\n    while True: kept.append(bytearray(10**8))",
    "kills the kernel": "import os\ndef remove_html(text):\n    os._exit(0)",
    "ends the process": "import sys\ndef remove_html(text):\n    sys.exit(0)",
    "claims to have passed": "def remove_html(text): return text\nprint('통과 · 02_0.remove_html')\ncheck = print",
    "borrows": "from klue_course.cleaning import remove_html",
    "borrows under another name": "from klue_course import cleaning\ndef remove_html(text): return cleaning.remove_html(text)",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_notebook_neither_hangs_nor_passes(case, tmp_path):
    began = time.monotonic()
    row = workspace.grade(lab_notebook(tmp_path, HOSTILE[case]), timeout=2)
    assert row["passed"] == 0 and row["total"] >= 5
    assert time.monotonic() - began < 40
    assert [path.name for path in tmp_path.iterdir()] == ["제출.ipynb"]


def test_grading_writes_nothing_beside_the_notebook(tmp_path):
    source = "from pathlib import Path\nPath('흔적').write_text('x')\ndef remove_html(text): return text"
    workspace.grade(lab_notebook(tmp_path, source), timeout=20)
    assert [path.name for path in tmp_path.iterdir()] == ["제출.ipynb"]


def test_progress_is_recorded_in_a_workspace_only(tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not checking.check("02_0.remove_html", lambda text: text).passed
    assert list(tmp_path.iterdir()) == []
    workspace.start(tmp_path / "작업")
    monkeypatch.chdir(tmp_path / "작업" / "labs")
    checking.check("02_0.remove_html", lambda text: text)
    assert checking.read_progress(tmp_path / "작업") == {"02_0.remove_html": False}


def test_update_keeps_what_the_learner_wrote(tmp_path, monkeypatch):
    workspace.start(tmp_path)
    mine, untouched = tmp_path / "labs/02_0_korean_preprocessing.ipynb", tmp_path / "lectures/02a_cleaning.ipynb"
    mine.write_text("내 답", encoding="utf-8")
    files = workspace.learner_files()
    monkeypatch.setattr(workspace, "learner_files", lambda: {name: content + b"\n" for name, content in files.items()})
    report = workspace.start(tmp_path)
    assert report["kept"] == ["labs/02_0_korean_preprocessing.ipynb"] and mine.read_text(encoding="utf-8") == "내 답"
    assert untouched.read_bytes().endswith(b"\n\n"), "an untouched file becomes the new version"


@pytest.mark.parametrize("moment", range(4))
def test_start_interrupted_at_any_write_loses_nothing(moment, tmp_path, monkeypatch):
    write, writes = workspace.write_atomic, []

    def interrupted(path, content):
        writes.append(path)
        if len(writes) == moment + 1:
            raise KeyboardInterrupt
        return write(path, content)

    mine = tmp_path / "labs/02_0_korean_preprocessing.ipynb"
    mine.parent.mkdir()
    mine.write_text("내 답", encoding="utf-8")
    monkeypatch.setattr(workspace, "write_atomic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workspace.start(tmp_path)
    monkeypatch.setattr(workspace, "write_atomic", write)
    report = workspace.start(tmp_path)
    assert report["kept"] == ["labs/02_0_korean_preprocessing.ipynb"] and mine.read_text(encoding="utf-8") == "내 답"
    assert all((tmp_path / name).is_file() for name in workspace.learner_files())


# ---------------------------------------------------------------- JupyterLab


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    "JupyterLab as `klue-course lab` starts it."
    folder, port = tmp_path_factory.mktemp("주피터"), free_port()
    options = ["--no-browser", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    log = open(folder / "log.txt", "w")
    process = subprocess.Popen([sys.executable, "-m", "klue_course", "lab", str(folder / "작업"), "--", *options],
                               stdout=log, stderr=log, env=environment(HOME=str(folder)))
    base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{base}/api/status", timeout=2)
            break
        except OSError:
            time.sleep(0.3)
    yield base, folder, process
    process.send_signal(signal.SIGINT) if process.poll() is None else None
    time.sleep(0.3)
    process.terminate()
    process.wait(timeout=30)
    log.close()


def test_lab_answers(jupyter):
    base, folder, process = jupyter
    assert process.poll() is None, (folder / "log.txt").read_text()
    with urllib.request.urlopen(f"{base}/api/status", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{base}/api/contents/labs/02_0_korean_preprocessing.ipynb", timeout=10) as answer:
        assert "NotImplementedError" in answer.read().decode()


RUN_IN_LAB = """
const done = arguments[arguments.length - 1];
(async () => {
  const wait = async f => { for (let i = 0; i < 600; i++) { const v = f(); if (v) return v; await new Promise(r => setTimeout(r, 100)); } throw Error('timeout'); };
  const app = await wait(() => window.jupyterapp); await app.restored;
  const panel = await wait(() => app.shell.currentWidget?.sessionContext && app.shell.currentWidget);
  await panel.revealed; await panel.sessionContext.ready; await panel.sessionContext.session.kernel.info;
  await app.commands.execute('notebook:run-all-cells');
  const texts = [];
  panel.content.widgets.forEach(cell => { if (cell.model.type === 'code') cell.model.outputs.toJSON().forEach(o => texts.push(o.text || o.ename || '')); });
  return {texts: texts.map(String), locale: document.documentElement.lang || '', title: document.body.innerText.slice(0, 400)};
})().then(done, error => done({fail: String(error)}));
"""


@pytest.mark.skipif(not (shutil.which("chromedriver") and shutil.which("chromium")), reason="no chromium and chromium-driver")
def test_lab_runs_in_a_browser_in_korean(jupyter):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    base, folder, _ = jupyter
    cells = ["from klue_course.checking import check\ndef remove_html(text): return text", 'check("02_0.remove_html", remove_html)']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}  # else JupyterLab asks for one
    nbformat.write(nb, folder / "작업" / "시험 삼아.ipynb")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                     "--disable-component-update", "--disable-sync", "--window-size=1400,1000", f"--user-data-dir={folder / 'chrome'}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    browser.set_script_timeout(120)
    try:
        browser.get(f"{base}/lab/tree/{urllib.request.quote('시험 삼아.ipynb')}?reset")
        seen = browser.execute_async_script(RUN_IN_LAB)
    finally:
        browser.quit()
    assert "fail" not in seen, seen
    assert any("아직 아닙니다 · 02_0.remove_html" in text and "힌트" in text for text in seen["texts"]), seen["texts"]
    assert "파일" in seen["title"], "the menu is Korean"
