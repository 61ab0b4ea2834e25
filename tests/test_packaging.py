"""The package as it is built and installed: contents, metadata, entry point, light import, no leftovers of a machine."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnxsim", "scipy", "sklearn", "sympy")
BASH, PYTHON = "#!/usr/bin/env bash\n", "#!/usr/bin/env python3\n"
DISTRIBUTION = {"google": "protobuf", "vl_convert": "vl-convert-python"}  # import name -> distribution, where they differ


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in requirements}


def _tracked(root: Path) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: nothing says which files are tracked")
    return [path for name in done.stdout.split("\0") if name and (path := root / name).is_file()]


def _tools(root: Path) -> list[Path]:
    """The commands of tools/: the files without a suffix."""
    return [path for path in (root / "tools").iterdir() if path.is_file() and not path.suffix]


def _loaded_by(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter has imported after `code`."""
    report = f"\nimport sys\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("LOADED")[1].split()


def test_the_wheel_holds_the_package_and_nothing_else(root: Path, tmp_path: Path) -> None:
    build = "import sys, flit_core.buildapi as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.strip()) as wheel:
        names = set(wheel.namelist())
        entry_points = next(wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    modules = {path.relative_to(root).as_posix() for path in (root / "normfold").rglob("*.py")}
    assert modules <= names
    assert "normfold/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"normfold", "normfold-0.1.0.dist-info"}
    assert "normfold=normfold.cli:main" in entry_points.replace(" ", "")


def test_every_folder_of_the_package_is_a_package(root: Path) -> None:
    folders = {path.parent for path in (root / "normfold").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_is_one(root: Path, project: dict[str, Any]) -> None:
    assert importlib.metadata.version("normfold") == project["version"]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE).group(1) == project["version"]


def test_the_command_is_installed_and_answers() -> None:
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="normfold")
    assert entry.value == "normfold.cli:main"
    done = subprocess.run([Path(sys.executable).parent / "normfold", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimize" in done.stdout


def test_importing_the_package_is_light() -> None:
    assert _loaded_by("import normfold") == []


def test_help_is_light() -> None:
    code = "from normfold.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert _loaded_by(code) == []


def test_every_pin_satisfies_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    for text in (*project["dependencies"], *extras):
        requirement = Requirement(text)
        if requirement.name != "normfold":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_what_the_package_imports_is_what_it_declares(root: Path, project: dict[str, Any]) -> None:
    found = {name for path in (root / "normfold").rglob("*.py") for name in _imports(ast.parse(path.read_text(encoding="utf-8")))}
    outside = found - set(sys.stdlib_module_names) - {"normfold"}
    used = {canonicalize_name(DISTRIBUTION.get(name, name)) for name in outside}
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    extras = [text for name in ("audit", "html", "safetensors") for text in project["optional-dependencies"][name]]
    optional = {canonicalize_name(Requirement(text).name) for text in extras}
    assert used - declared <= optional
    assert declared - used <= {"onnxscript"}  # torch.onnx.export imports it


def test_torch_load_never_unpickles(root: Path) -> None:
    scripts = [path for path in _tools(root) if path.read_text(encoding="utf-8").startswith(PYTHON)]
    for path in (*(root / "normfold").rglob("*.py"), *(root / "models").glob("*.py"), *scripts):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{path.relative_to(root)}:{node.lineno}"


def test_no_tracked_file_names_a_machine(root: Path) -> None:
    place = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/\w|[A-Z]:\\Users")
    found = []
    for path in _tracked(root):
        content = path.read_bytes()
        if b"\0" not in content and path != Path(__file__):
            lines = content.decode("utf-8").splitlines()
            found += [f"{path.relative_to(root)}:{n}: {line}" for n, line in enumerate(lines, 1) if place.search(line)]
    assert found == []


def test_no_tracked_file_is_large(root: Path) -> None:
    assert [str(path) for path in _tracked(root) if path.stat().st_size > 2**20] == []


def test_the_tools_can_be_run(root: Path) -> None:
    tools = _tools(root)
    assert {path.name for path in tools} >= {"accuracy", "bench", "check", "demo", "test", "train"}
    for path in (*tools, root / ".ci" / "run"):
        assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
        assert path.read_text(encoding="utf-8").startswith((BASH, PYTHON))
