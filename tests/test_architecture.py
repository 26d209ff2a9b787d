"""The order of the chapters: left may not import right, and what serves a model loads no training framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_models import packed
from PIL import Image

PACKAGE = Path(__file__).parents[1] / "graft"
ORDER = (
    ("errors", "version", "quantities"),
    ("store", "compute"),
    ("images",),
    ("backbones",),
    ("learning",),
    ("pretraining",),
    ("judging",),
    ("deploy",),
    ("similar",),
    ("serving",),
    ("studies",),
    ("report",),
    ("api",),
    ("estimator_input",),
    ("estimator_records",),
    ("estimator_training",),
    ("estimator_fitting",),
    ("estimator",),
    ("console",),
    ("following",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {chapter: rank for rank, chapters in enumerate(ORDER) for chapter in chapters}


def violations(package: Path) -> list[str]:
    """Each import below `package` that looks right, and each chapter that has no place; wherever it stands.

    Imports for annotations only (`if TYPE_CHECKING:`) do not count, nor does the package's own `__init__`.
    """
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside == Path("__init__.py"):
            continue
        chapter = inside.parts[0].removesuffix(".py")
        if chapter not in RANK:
            found.append(f"{inside}: the chapter {chapter} has no place in the order")
            continue
        for line, target in imports(ast.parse(path.read_text(encoding="utf-8")), package, inside):
            if RANK.get(target, len(ORDER)) > RANK[chapter]:
                found.append(f"{inside}:{line} imports {target}")
    return found


def imports(tree: ast.AST, package: Path, inside: Path) -> Iterator[tuple[int, str]]:
    """(line, chapter) of every import of the package's own, also inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), package, inside)
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (
                (node.lineno, parts[1]) for parts in names if parts[0] == package.name and len(parts) > 1
            )
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [package.name, *inside.parts[: len(inside.parts) - node.level], *parts]
            if parts[:1] == [package.name]:
                yield from ((node.lineno, (*parts[1:], alias.name)[0]) for alias in node.names)
        else:
            yield from imports(node, package, inside)


def test_imports_only_look_left() -> None:
    assert violations(PACKAGE) == []


def test_every_chapter_of_the_order_exists() -> None:
    """Otherwise a renamed chapter would leave its rule behind."""
    assert all((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() for name in RANK)


@pytest.mark.parametrize(
    "line",
    [
        "import graft.studies.journal",
        "from graft.studies import journal",
        "from graft import cli",
        "from ..studies import journal",
        "from .. import studies",
        "def later():\n    from graft.studies.journal import read",
        "class A:\n    def b(self):\n        if True:\n            import graft.report.page",
        "try:\n    import graft.studies\nexcept ImportError:\n    pass",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import graft.studies",
        "import numpy, graft.api",
    ],
)
def test_the_test_sees_every_kind_of_import(line: str, tmp_path: Path) -> None:
    package = made_package(tmp_path, line)
    assert len(violations(package)) == 1, violations(package)


@pytest.mark.parametrize(
    "line",
    [
        "from graft.errors import GraftError",
        "from graft.store import Store\nfrom graft.judging import metrics",
        "import graftage.studies",
        "from .bundle import load",
        "if TYPE_CHECKING:\n    from graft.studies.journal import Journal",
        "if typing.TYPE_CHECKING:\n    import graft.cli",
        "text = 'import graft.cli'",
    ],
)
def test_the_test_lets_pass_what_is_allowed(line: str, tmp_path: Path) -> None:
    assert violations(made_package(tmp_path, line)) == []


def test_the_test_sees_a_chapter_without_a_place(tmp_path: Path) -> None:
    package = made_package(tmp_path, "")
    (package / "utils.py").write_text("")
    assert violations(package) == ["utils.py: the chapter utils has no place in the order"]


def made_package(place: Path, line: str) -> Path:
    """A package called graft with one module, `graft/deploy/module.py`."""
    folder = place / "graft" / "deploy"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(line + "\n")
    (place / "graft" / "__init__.py").write_text("from graft import cli\n")
    return place / "graft"


HEAVY = ("torch", "timm", "torchvision")
LOADED = "\nimport sys\nprint('\\n' + ' '.join(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded_after(program: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after `program`."""
    done = subprocess.run(
        [sys.executable, "-c", program + LOADED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    """A program that runs the command line and lives on after argparse's exit."""
    return (
        "from graft.cli import main\n"
        f"try:\n    code = main({list(arguments)!r})\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert code == 0, code"
    )


@pytest.mark.parametrize(
    "module",
    [
        "graft",
        "graft.cli",
        "graft.deploy.bundle",
        "graft.deploy.evaluate",
        "graft.similar.build",
        "graft.serving.app",
        "graft.serving.process",
        "graft.report.page",
        "graft.studies.results",
    ],
)
def test_importing_loads_no_training_framework(module: str) -> None:
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_import_graft_loads_next_to_nothing() -> None:
    assert loaded_after("import graft\nassert graft.__version__").isdisjoint({*HEAVY, "numpy", "PIL", "rich"})


def test_help_loads_neither_numpy_nor_rich() -> None:
    loaded = loaded_after(command("--help"))
    assert loaded.isdisjoint({*HEAVY, "numpy", "rich", "PIL", "onnxruntime"}) and "argparse" in loaded


def test_predicting_loads_no_training_framework(tmp_path: Path) -> None:
    folder = packed(tmp_path / "model.graft")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "a.png")
    loaded = loaded_after(command("predict", str(folder), str(tmp_path / "a.png"), "--json"))
    assert loaded.isdisjoint({*HEAVY, "onnx", "openvino", "sklearn", "scipy", "rich"})
    assert "onnxruntime" in loaded


def test_similar_images_load_no_training_framework(tmp_path: Path) -> None:
    folder, photos = packed(tmp_path / "model.graft"), tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 30), "teal").save(photos / "a.png")
    done = loaded_after(command("index", str(folder), str(photos), "--out", str(tmp_path / "index")))
    assert done.isdisjoint({*HEAVY, "onnx", "openvino", "sklearn", "scipy", "usearch"}) and "rich" in done
    found = loaded_after(command("similar", str(tmp_path / "index"), str(photos / "a.png")))
    assert found.isdisjoint({*HEAVY, "onnx", "openvino", "sklearn", "scipy", "usearch", "rich"})


def test_the_probe_sees_what_is_loaded() -> None:
    assert {"numpy", "sqlite3"} <= loaded_after("import numpy, sqlite3")


def test_a_study_begins_without_torch() -> None:
    """A warm study never needs it, and a cold one imports it beside the scan."""
    code = "import sys, graft.studies.search; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
