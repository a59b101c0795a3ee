"""For authors: export, execute in place, clean, measure, and write the README files. `python -m tests.refresh [ID…] [--readme]`"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml

from klue_course import workspace
from klue_course.runtime import assets_dir, write_atomic

ROOT = Path(__file__).parent.parent
READMES = {"README.md": "index_en.ipynb", "README.ko.md": "index.ipynb"}
PAGES = ["index.ipynb", "index_en.ipynb", "glossary.ipynb"]


def keep_outputs(source: Path, executed) -> None:
    "Write the outputs of an executed copy into the source notebook, cell by cell."
    nb, outputs = nbformat.read(source, as_version=4), {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    for cell in nb.cells:
        if cell.id in outputs:
            cell.outputs = outputs[cell.id]
    write_atomic(source, nbformat.writes(nb) + "\n")


def measure(rows: list[dict]) -> None:
    "Write seconds and peak memory of a run into the syllabus."
    path = assets_dir() / "syllabus.yaml"
    head = path.read_text(encoding="utf-8").partition("\n")[0]
    content, measured = workspace.read_syllabus(), {row["id"]: row for row in rows}
    for notebook in content["notebooks"]:
        if row := measured.get(notebook["id"]):
            notebook |= {"seconds": row["seconds"], "peak_mb": row["peak_mb"]}
    write_atomic(path, head + "\n" + yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=200))


def readme(index: str) -> str:
    "The README that an index notebook stands for: its markdown and the outputs of its cells, links seen from the root."
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter(exclude_input=True)
    text, _ = exporter.from_notebook_node(nbformat.read(ROOT / "nbs" / index, as_version=4))
    text = re.sub(r"\]\((?=(lectures|labs|foundations|checks|glossary|index))", "](nbs/", text).replace("](../", "](")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def run_page(name: str) -> None:
    "Execute one of the front pages in place."
    path = ROOT / "nbs" / name
    nb = nbformat.read(path, as_version=4)
    result = workspace.execute(nb, path.parent, dict(os.environ, IN_TEST="1"))
    assert result.error is None, f"{name}: {result.error}"
    keep_outputs(path, nb)


def nbdev(name: str) -> None:
    "Run one of nbdev's commands on the repository."
    subprocess.run([Path(sys.executable).with_name(f"nbdev_{name}")], cwd=ROOT, check=True)


def main(arguments: list[str]) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "KLUE_COURSE_PROFILE": "mini"}
    os.environ.pop("KLUE_COURSE_DATA", None)
    if "--readme" not in arguments:
        nbdev("export")
        with tempfile.TemporaryDirectory() as out:
            notebooks, rows = workspace.find_notebooks(arguments), []
            for row in workspace.run_notebooks(notebooks, "mini", out, jobs=2):
                print(row["id"], row["status"], f"{row['seconds']:.1f} s", row["error"] or "", flush=True)
                rows.append(row)
            assert all(row["error"] is None for row in rows), "a notebook failed: nothing was written"
            for notebook in notebooks:
                keep_outputs(notebook.path, nbformat.read(Path(out) / f"{notebook.id}.ipynb", as_version=4))
        measure(rows)
    for page in PAGES:
        run_page(page)
    nbdev("clean")
    for name, index in READMES.items():
        write_atomic(ROOT / name, readme(index))


if __name__ == "__main__":
    main(sys.argv[1:])
