"""The import law of docs/architecture.md, read from the source, so that lazy and type-checking imports count too."""

import ast
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("harness", "codecs", "tasks", "results")

# Which of the four folders each of them may import, itself included.
MAY_IMPORT = {"harness": {*FOLDERS}, "codecs": {"codecs"}, "tasks": {"tasks"}, "results": {"results"}}

# The groups of a folder from the top down: a module imports its own group and those below it. FILES stands for the modules that
# lie in the folder itself. A group of several names is one level whose members do not import each other.
FILES = "files"
GROUPS = {
    "harness": ["cli", "commands", "derive", "processes", "work", "guests", "store", "config"],
    "codecs": ["training", FILES, "diffusion", "entropy"],
    "codecs.diffusion": [FILES, "prompts", "sampling", ("backbone", "latents")],
    "tasks": [FILES, "models", "datasets"],
}

# Modules that lie beside the groups but below all of them: every group may import them, and they import no group.
FOUNDATION = {
    "codecs": {"base", "bitstream", "checks", "perceptual", "process", "yuv"},
    "tasks": {"base", "fingerprints", "geometry", "maps", "run_lengths"},
}


def imports_of(root):
    """{module: modules of the four folders that it imports}, by dotted names such as `codecs.entropy.coder`."""
    modules = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = path
    return {name: _imported(path, modules) for name, path in modules.items()}


def _imported(path, modules):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write relative imports as absolute ones, so that this test can follow them"
            base = (node.module or "").removeprefix("icmbench").removeprefix(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            imported |= {name if name in modules else base for name in names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name.removeprefix("icmbench.") for alias in node.names}
    return {name for name in imported if name in modules}


def violations(root):
    """One sentence for each import that breaks the law."""
    imports = imports_of(root)
    sentences = []
    for importer, imported in imports.items():
        for name in sorted(imported):
            if name.split(".")[0] not in MAY_IMPORT[importer.split(".")[0]]:
                sentences.append(f"{importer} imports {name}: {importer.split('.')[0]} may not import that folder")
            sentences += [f"{importer} imports {name}, which lies above it" for folder in GROUPS if _rises(folder, importer, name)]
    return sentences + [f"import circle: {' -> '.join(circle)}" for circle in _circles(imports)]


def _rises(folder, importer, imported):
    """Whether both modules lie in `folder` and the import does not point down."""
    levels = [_level(folder, module) for module in (importer, imported)]
    if None in levels:
        return False
    (importer_level, importer_group), (imported_level, imported_group) = levels
    return importer_level > imported_level or (importer_level == imported_level and importer_group != imported_group)


def _level(folder, module):
    """How far down in `folder` a module lies, and the name of its group; None where it lies elsewhere."""
    prefix, _, rest = module.partition(f"{folder}.")
    if prefix or not rest:
        return None
    if rest in FOUNDATION.get(folder, ()):
        return len(GROUPS[folder]), "foundation"
    group = rest.split(".")[0]
    for level, names in enumerate(GROUPS[folder]):
        if group in (names if isinstance(names, tuple) else (names,)):
            return level, group
    return GROUPS[folder].index(FILES), FILES


def _circles(imports):
    """The first import circle that each module lies on, as a path that ends where it starts."""
    seen, path, circles = set(), [], []

    def visit(module):
        if module in path:
            circles.append([*path[path.index(module) :], module])
        elif module not in seen:
            seen.add(module)
            path.append(module)
            for imported in sorted(imports[module]):
                visit(imported)
            path.pop()

    for module in imports:
        visit(module)
    return circles


def test_every_import_points_down():
    assert violations(ROOT) == []


def test_every_folder_and_module_of_the_law_is_there():
    for folder, levels in GROUPS.items():
        for group in (name for names in levels for name in (names if isinstance(names, tuple) else (names,))):
            place = ROOT.joinpath(*folder.split("."), group)
            assert group == FILES or place.is_dir() or place.with_suffix(".py").is_file(), place
    for folder, modules in FOUNDATION.items():
        assert all((ROOT / folder / f"{module}.py").is_file() for module in modules)


@pytest.mark.parametrize(
    ("module", "line", "sentence"),
    [
        ("codecs/classical.py", "import icmbench.tasks.base", "codecs may not import that folder"),
        ("results/bd.py", "from icmbench.harness import cli", "results may not import that folder"),
        ("harness/store/store.py", "from icmbench.harness.work.loop import WorkUnit", "harness.work.loop, which lies above it"),
        ("codecs/diffusion/prompts/guides.py", "from icmbench.codecs.diffusion import engine", "engine, which lies above it"),
        ("codecs/diffusion/latents/layers.py", "import icmbench.codecs.diffusion.backbone.unet", "unet, which lies above it"),
        ("codecs/base.py", "import icmbench.codecs.classical", "codecs.classical, which lies above it"),
        ("codecs/entropy/tables.py", "import icmbench.codecs.entropy.coder", "codecs.entropy.tables -> codecs.entropy.coder"),
    ],
)
@pytest.mark.parametrize("how", ["at the top", "lazily", "for type checkers"])
def test_a_broken_law_is_found(tmp_path, module, line, sentence, how):
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=lambda _, names: [n for n in names if n == "pretrained"])
    text = {"at the top": line, "lazily": f"def f():\n    {line}", "for type checkers": f"if TYPE_CHECKING:\n    {line}"}[how]
    path = tmp_path / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{text}\n", encoding="utf-8")
    assert any(sentence in violation for violation in violations(tmp_path)), violations(tmp_path)


def test_groups_have_no_module_of_their_own_name_twice():
    """A folder `store/` beside a module `store.py` would make an import ambiguous."""
    for folder in (path for top in FOLDERS for path in (ROOT / top).rglob("*") if path.is_dir()):
        assert not folder.with_suffix(".py").exists(), folder


def test_the_architecture_page_shows_the_same_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder, levels in GROUPS.items():
        order = " > ".join(" | ".join(names) if isinstance(names, tuple) else names for names in levels)
        assert order in text, f"docs/architecture.md does not show {folder}: {order}"
