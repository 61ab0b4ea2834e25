"""What the README says can be done: its links resolve, its commands and their options exist, its Python runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from normfold.cli import cli

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
DOCUMENTS = [README, README.parent / "CHANGELOG.md"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def _commands(program: str) -> list[list[str]]:
    """Every command line of the bash blocks that runs `program`, continuation lines joined, without comments."""
    lines = [line.strip() for block in _blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and re.fullmatch(program, line[0])]


def _slug(heading: str) -> str:
    """The anchor that a Markdown heading gets on a code host."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    headings = {_slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_the_readme_starts_with_the_two_commands_that_need_nothing() -> None:
    first = [line.split()[0] for line in _blocks("bash")[0].splitlines()]
    assert first == ["tools/demo", "tools/test"]


def test_every_tool_that_is_named_exists() -> None:
    named = set(re.findall(r"\btools/[a-z_]+", TEXT)) | set(re.findall(r"(?<![\w/])\.ci/[a-z]+", TEXT))
    assert {"tools/demo", "tools/test", "tools/check", ".ci/run"} <= named
    assert [name for name in sorted(named) if not (README.parent / name).exists()] == []


def test_every_file_of_the_models_that_is_named_exists() -> None:
    named = {word for line in _commands(r"tools/\w+|normfold") for word in line if word.startswith("models/") and "<" not in word}
    assert named
    files = {name.partition(":")[0] for name in named}  # file.py:function
    missing = [name for name in sorted(files) if not (README.parent / name).exists() and ".normfold." not in name]
    assert missing == []


@pytest.mark.parametrize("words", _commands("normfold"), ids=" ".join)
def test_every_command_and_option_of_normfold_exists(words: list[str]) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    arguments = words[1:]
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command, context = found, click.Context(found, parent=context)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    used = [word.partition("=")[0] if word.startswith("--") else word for word in arguments if re.match(r"-{1,2}[a-z]", word)]
    assert [option for option in used if option not in known] == []


def test_pip_commands_use_the_pins_and_extras_that_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[$", (README.parent / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    installs = _commands("pip")
    assert installs
    for words in installs:
        assert words[1:4] == ["install", "-c", "constraints.txt"]
        assert set(re.findall(r"\w+", words[-1].partition("[")[2])) <= extras


def _on_our_models(words: list[str]) -> bool:
    """A command on models/; `swap` has a test of its own, which looks at what it says, too."""
    return any(word.startswith("models/") for word in words) and words[1] != "swap"


@pytest.mark.slow
@pytest.mark.parametrize("words", [*filter(_on_our_models, _commands("normfold"))], ids=" ".join)
def test_the_commands_on_our_models_run(words: list[str], tmp_path: Path) -> None:
    shutil.copytree(README.parent / "models", tmp_path / "models")
    shorter: list[str] = []
    if words[1] == "audit":  # of one model, and not for ten seconds: all take minutes
        shorter = ["--seconds", "1"]
        for path in (tmp_path / "models").glob("*.pt"):
            if path.stem != "digits_convbn":
                path.unlink()
    done = subprocess.run([sys.executable, "-m", *words, *shorter], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_python_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(README.parent / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "models"))
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(_blocks("python"), 1):
        exec(compile(block, f"README.md, Python example {number}", "exec"), namespace)
