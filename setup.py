"""Finds every subpackage of the four folders, which no static table in pyproject.toml can do."""

from setuptools import find_packages, setup

ROOTS = ["harness", "codecs", "tasks", "results"]
PACKAGES = [f"{root}{'.' + sub if sub else ''}" for root in ROOTS for sub in ["", *find_packages(root)]]
setup(packages=[f"icmbench.{package}" for package in PACKAGES], package_dir={f"icmbench.{root}": root for root in ROOTS})
