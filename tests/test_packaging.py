"""The wheel holds every module and data file. An editable install would not reveal a missing one."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("harness", "codecs", "tasks", "results")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel, built from a copy so that the checkout stays clean."""
    work = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, work / "source"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
        archive.extractall(work / "site")
    return work / "site"


def test_every_module_imports_from_the_wheel(wheel):
    modules = sorted(
        ".".join(["icmbench", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    )
    # With -S, Python ignores .pth files, and so the editable install.
    code = "import sys, importlib; sys.path[:0] = sys.argv[1:3]; [importlib.import_module(name) for name in sys.argv[3:]];"
    code += "print(sys.modules['icmbench.harness'].__file__)"
    paths = [str(wheel), sysconfig.get_path("purelib")]
    done = subprocess.run([sys.executable, "-S", "-c", code, *paths, *modules], capture_output=True, text=True, cwd=wheel)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel))


def test_data_files_are_in_the_wheel(wheel):
    suffixes = {path.suffix for path in (wheel / "icmbench").rglob("*") if path.is_file()} - {".py", ".pyc"}
    in_tree = {
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".md"}
    }
    assert suffixes and all((wheel / "icmbench" / path).exists() for path in in_tree)


def test_no_tracked_file_names_a_registry_or_a_lock():
    try:
        names = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert not [name for name in names if name.endswith(".lock")]
    address = re.compile(rb"https?://[^\s\"']*(pypi|pythonhosted|index-url)|(pypi|pythonhosted)\.org")
    naming = [name for name in names if (ROOT / name).is_file() and address.search((ROOT / name).read_bytes())]
    assert naming == [] or naming == [os.path.relpath(__file__, ROOT)]  # This file names them in its pattern.


def test_pre_commit_uses_the_pinned_linter():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    used = {package for hook in hooks for package in hook["additional_dependencies"] if package.startswith("ruff")}
    assert len(used) == 1 and used <= {*(ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")}
