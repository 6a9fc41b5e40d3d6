"""Packaging. Every fact comes from settings.ini; nothing is stated twice."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
EXTRAS = ("live", "research", "alpaca", "angel", "practice", "postgres", "dev")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
STATUSES = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

extras = {name: cfg[f"{name}_requirements"].split() for name in EXTRAS}
extras["all"] = sorted({req for reqs in extras.values() for req in reqs})
if cfg["min_python"] not in PYTHONS:
    raise SystemExit(f"settings.ini: min_python = {cfg['min_python']} is not one of {', '.join(PYTHONS)}. Extend PYTHONS in setup.py.")
pythons = PYTHONS[PYTHONS.index(cfg["min_python"]):]
readme = HERE / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=cfg["license"],
    url=cfg["git_url"],
    classifiers=[
        f"Development Status :: {STATUSES[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: {v}" for v in pythons),
    ],
    packages=find_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),
    package_data={cfg["lib_name"]: ["py.typed", "**/*.csv", "**/*.js", "**/*.css"]},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "papermill.engine": ["live = scalp_nb.live.engine:LiveEngine"],
        "nbdev": [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
