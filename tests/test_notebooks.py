"""All notebooks: they run, in time, offline, with the outputs they are committed with; the package is what they export."""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from klue_course import workspace
from tests.conftest import GUARD, ROOT, environment

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
SKIPPED_CELLS = {}  # notebook -> how many cells carry slow, gpu, hub or eval: false
TESTING = {"assert", "check", "prove", "test_eq", "test_fail", "test_close"}


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def name(path: Path) -> str:
    return path.stem


# ---------------------------------------------------------------- the run


def test_every_notebook_passes_nbdev_test(report):
    assert {row["id"]: row["error"] for row in report if row["error"]} == {}
    assert {row["id"] for row in report} == {notebook.id for notebook in workspace.syllabus() if notebook.ready}


def test_no_connection_in_mini(mini_run):
    log = mini_run / "connections.txt"
    assert not log.exists(), log.read_text(encoding="utf-8")


def test_the_guard_would_notice(tmp_path):
    log = tmp_path / "connections.txt"
    source = "import urllib.request\ntry: urllib.request.urlopen('http://example.com', timeout=3)\nexcept OSError: pass"
    env = environment(PYTHONPATH=str(GUARD), KLUE_COURSE_CONNECTIONS=str(log))
    subprocess.run([sys.executable, "-c", source], env=env, check=True, timeout=60)
    assert "example.com" in log.read_text(encoding="utf-8")


def test_time_within_three_times_the_syllabus(report):
    stated = {notebook.id: notebook.seconds for notebook in workspace.syllabus()}
    late = {row["id"]: (row["seconds"], stated[row["id"]]) for row in report if row["seconds"] > 3 * max(stated[row["id"]] or 0, 2)}
    assert late == {}


def budget(id: str) -> float:
    "Seconds a notebook may take in mini (DESIGN: lab 90, lecture 45, others 15)."
    return {"f": 15, "c": 15}.get(id[0], 90 if "_" in id else 45)


def test_stated_times_are_measured_and_within_budget():
    stated = {notebook.id: notebook.seconds for notebook in workspace.syllabus() if notebook.ready}
    assert {id: seconds for id, seconds in stated.items() if seconds is None or seconds > budget(id)} == {}


def shown(output) -> str:
    "What an output says; a table as HTML, because its plain text depends on how wide a screen seems to be."
    data = output.get("data", {})
    table = 'class="dataframe"' in data.get("text/html", "")
    return output.get("text") or data.get("text/html" if table else "text/plain", "")


def stored_text(cell) -> str:
    "The text a cell shows, without what differs by nature (addresses, colours)."
    text = "".join(map(shown, cell.outputs))
    return re.sub(r"0x[0-9a-f]+|<Figure size[^>]*>|\x1b\[[0-9;]*m", "", text).strip()


@pytest.mark.parametrize("notebook", [nb for nb in workspace.syllabus() if nb.ready], ids=lambda nb: nb.id)
def test_stored_outputs_are_what_a_fresh_run_gives(notebook, mini_run):
    stored, fresh = read(notebook.path), {cell.id: cell for cell in code_cells(read(mini_run / notebook.path.name))}
    for cell in code_cells(stored):
        if cell.id in fresh and "varies" not in cell.metadata.get("tags", []):
            assert stored_text(cell) == stored_text(fresh[cell.id]), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_page_loads_nothing_from_elsewhere(path):
    loads = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](https?:[^"']+)""", workspace.to_html(read(path)))
    assert all("mathjax" in url for url in loads), loads


# ---------------------------------------------------------------- nbdev


def copy_of_repository(tmp_path: Path) -> Path:
    "The files that make the package, copied."
    for path in ("nbs", "klue_course"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for path in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / path, tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts and path.name != ".last_checked"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("tool", ["nbdev_export", "nbdev_clean"])
def test_export_and_clean_change_nothing(tool, tmp_path):
    copy = copy_of_repository(tmp_path)
    before = contents(copy)
    done = subprocess.run([Path(sys.executable).with_name(tool)], cwd=copy, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    after = contents(copy)
    assert [path for path in before | after if before.get(path) != after.get(path)] == []


# ---------------------------------------------------------------- each notebook, as committed


def assertions(nb) -> int:
    "How many asserts and test calls stand in a notebook's cells, not counting those inside exported functions."
    return sum(bool(re.search(rf"^\s*(assert\b|({'|'.join(TESTING - {'assert'})})\()", line)) for cell in code_cells(nb) for line in cell.source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_asserts_something(path):
    least = {"lectures": 20, "labs": 6, "checks": 6, "foundations": 3}.get(path.parent.name, 1)
    least = {"09_main": 1, "glossary": 1}.get(path.stem, least)
    assert assertions(read(path)) >= least


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_committed_executed_and_clean(path):
    nb = read(path)
    assert path.stat().st_size < 1_000_000
    assert not any(output.output_type == "error" for cell in code_cells(nb) for output in cell.outputs)
    assert any(cell.outputs for cell in code_cells(nb)) or path.parent.name not in ("lectures", "labs")
    assert "AUTOGENERATED" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_style(path):
    nb = read(path)
    assert re.fullmatch(r"# .+\n\n> .+", nb.cells[0].source), "the title cell is an H1 and a > line"
    for cell in code_cells(nb):
        alone = len(ast.parse(cell.source).body) == 1 and isinstance(ast.parse(cell.source).body[0], (ast.ClassDef, ast.Assign))
        assert len(cell.source.splitlines()) <= (40 if alone else 26), cell.source[:80]  # a class may fill a screen, a table too
        assert not re.search(r"^\s*[!%]|import \*", cell.source, re.MULTILINE), cell.source[:80]


def test_skipped_cells_are_known():
    skipped = {path.stem: sum(map(workspace.is_skipped, code_cells(read(path)))) for path in NOTEBOOKS}
    assert {stem: count for stem, count in skipped.items() if count} == SKIPPED_CELLS


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent.name == "labs"], ids=name)
def test_lab_has_enough_exercises_followed_by_their_check(path):
    cells = code_cells(read(path))
    exercises = [place for place, cell in enumerate(cells) if "### BEGIN SOLUTION" in cell.source]
    assert len(exercises) >= 5
    for place in exercises:
        function = next(node.name for node in ast.walk(ast.parse(cells[place].source)) if isinstance(node, ast.FunctionDef))
        assert re.fullmatch(rf'check\("\d\d_\d\.{function}", {function}\)', cells[place + 1].source.strip())
    assert any("practice" in cell.metadata.get("tags", []) for cell in cells)
