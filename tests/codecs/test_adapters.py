"""The adapters that come with icmbench: readable by Python 3.8, independent of icmbench, one codec a file, and documented.

What they compute needs the authors' code and environments, which `tests/adapters/verify.py` compares with.
"""

import ast
from pathlib import Path

import pytest

from icmbench.harness.guests.plugin import SHIPPED

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted(path for path in SHIPPED.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_keeps_to_its_contract(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(module.startswith("icmbench") for module in modules)
    (codec,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name[-5:] != "Error"
    ]
    methods = {node.name for node in codec.body if isinstance(node, ast.FunctionDef)}
    assert {"compress", "decompress"} <= methods or ("reconstruct" in methods and not methods & {"compress", "decompress"})
    about = " ".join(ast.get_docstring(tree).split())
    assert all(word in about for word in ("Repository: ", "Weights", "Licence", "Verified", "Not verified")), path.stem


def test_every_adapter_has_its_page_and_its_comparison():
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert len(ADAPTERS) == 14
    for path in ADAPTERS:
        assert f"| `{path.stem}` |" in page and (ROOT / "tests" / "adapters" / path.name).is_file()
