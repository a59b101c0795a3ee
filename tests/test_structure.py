"""The house: imports go downwards, light modules stay light, generated files match their sources, words of trust hold."""
import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from klue_course import workspace
from tests.conftest import ROOT, environment
from tests.refresh import READMES, readme

PACKAGE = ROOT / "klue_course"
FLOORS = [
    ["runtime"],
    ["data", "cleaning", "plots"],
    ["metrics", "tokenization", "embeddings", "language_models", "transformer", "bert", "gpt"],
    ["classification", "relations", "parsing", "dialogue_state", "pairs", "tagging", "reading", "objectives", "multimodal"],
    ["training", "pretraining", "generation"],
    ["retrieval", "control", "dialogue"],
    ["checking", "checks", "workspace", "bench", "cli", "__main__"],
]
ORDER = [module for floor in FLOORS for module in floor]
LIGHT = ["runtime", "data", "cleaning", "checking", "workspace", "cli"]
HEAVY = ["torch", "transformers", "datasets", "kss", "konlpy", "pandas", "matplotlib"]


def modules() -> dict[str, Path]:
    "Every module of the package, by the name it has in FLOORS (all checks count as one)."
    files = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "_modidx")]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in files}


def imports(path: Path) -> set[str]:
    "The modules of this package that a module imports, wherever in it, relative or not."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("klue_course")):
            base = (node.module or "").removeprefix("klue_course").strip(".")
            found |= {base.split(".")[0]} if base else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("klue_course.")}
    return found - {"__version__", ""}


def test_import_graph_goes_down_and_left():
    graph = {name: imports(path) for name, path in modules().items()}
    print("\n".join(f"{name} -> {', '.join(sorted(targets)) or '-'}" for name, targets in graph.items()))
    assert set(name.split(".")[0] for name in graph) <= set(ORDER)
    wrong = [(name, target) for name, targets in graph.items() for target in targets
             if ORDER.index(target) >= ORDER.index(name.split(".")[0])]
    assert wrong == []
    assert "checks" not in graph["checking"], "checking finds the checks by name at call time"


def test_init_holds_only_the_version():
    assert re.fullmatch(r'__version__ = "\d+\.\d+\.\d+"\n', (PACKAGE / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_imports_nothing_heavy(module):
    source = f"import klue_course.{module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_module_has_its_notebook_and_the_other_way_round():
    exports = {notebook.exports for notebook in workspace.syllabus() if notebook.ready and notebook.exports}
    assert exports == set(modules())


# ---------------------------------------------------------------- generated files


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(*keys: str) -> list[str]:
    return [line.strip() for key in keys for line in settings()[key].splitlines() if line.strip()]


def test_environment_yml_matches_settings():
    environment_yml = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment_yml["dependencies"]
    assert pip["pip"] == requirements("requirements", "dev_requirements")
    assert f"python>={settings()['min_python']},<3.14" in conda


def test_constraints_satisfy_the_ranges():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    for wanted in map(Requirement, requirements("requirements", "dev_requirements")):
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted


def test_version_is_the_same_everywhere():
    assert f'__version__ = "{settings()["version"]}"' in (PACKAGE / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READMES)
def test_readme_is_what_its_notebook_says(name):
    assert (ROOT / name).read_text(encoding="utf-8") == readme(READMES[name]), "run `make readme`"


@pytest.mark.parametrize("name", READMES)
def test_readme_links_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links and [link for link in links if not (ROOT / link).exists()] == []


# ---------------------------------------------------------------- trust


def test_no_device_names_outside_runtime():
    named = [name for name, path in modules().items() if name != "runtime" and re.search(r"""['"]cuda['"]|\.cuda\(""", path.read_text(encoding="utf-8"))]
    assert named == []


def test_no_pickle_and_no_remote_code():
    bad = re.compile(r"^\s*import pickle|pickle\.load|trust_remote_code\s*=\s*True|torch\.load\(|weights_only=False", re.MULTILINE)
    assert [name for name, path in modules().items() if bad.search(path.read_text(encoding="utf-8"))] == []


def test_assets_are_plain_files():
    kinds = {path.suffix for path in (PACKAGE / "assets").rglob("*") if path.is_file()}
    assert kinds <= {".yaml", ".json", ".jsonl", ".txt", ".tsv", ".csv", ".html", ".md", ".safetensors"}
