"""Packaging: every field comes from settings.ini; the notebooks travel in the wheel as klue_course/_nbs."""
import configparser
import pathlib

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key):
    """The non-empty lines of a multi-line setting."""
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    classifiers=["Natural Language :: Korean", f"Programming Language :: Python :: {cfg['min_python']}"],
    packages=[*find_packages(include=["klue_course", "klue_course.*"]), "klue_course._nbs"],
    package_dir={"klue_course._nbs": "nbs"},
    package_data={"klue_course": ["assets/**/*"], "klue_course._nbs": ["**/*.ipynb"]},
    zip_safe=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={"dev": lines("dev_requirements")},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
