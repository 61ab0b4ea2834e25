"""The user's own Python, named as file or module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from normfold.errors import UsageError
from normfold.load.factory import resolve


def test_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "sibling.py").write_text("VALUE = 41\n")
    path = tmp_path / "arch.py"
    path.write_text("import sibling\nclass Nets:\n    @staticmethod\n    def make():\n        return sibling.VALUE + 1\n")
    before = list(sys.path)
    made, where = resolve(f"{path}:Nets.make", option="--model")
    assert (made(), where) == (42, path)
    assert sys.path == before
    assert resolve("os.path:join", option="--model")[0] is __import__("os").path.join
    assert resolve("arch.py:Nets", option="--model", base=tmp_path)[0].make() == 42


def test_a_file_named_twice_runs_once(tmp_path: Path) -> None:
    path = tmp_path / "once_only.py"
    log = tmp_path / "log"
    path.write_text(f"from pathlib import Path\nlog = Path({str(log)!r})\nlog.touch(exist_ok=False)\nA, B = 1, 2\n")
    assert [resolve(f"{path}:{name}", option="--model")[0] for name in "AB"] == [1, 2]
    assert log.exists()


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    values = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "same_name.py").write_text(f"VALUE = {number}\n")
        values.append(resolve(f"{folder / 'same_name.py'}:VALUE", option="--model")[0])
    assert values == [1, 2]


@pytest.mark.parametrize(
    "reference, reason",
    [
        ("arch.py", "expects path/to/file.py:name"),
        (":name", "expects path/to/file.py:name"),
        ("arch.py:", "expects path/to/file.py:name"),
        ("none.py:net", "there is no file"),
        ("broken.py:net", r"importing .*broken.py failed: SyntaxError"),
        ("raising.py:net", r"failed: ValueError: no such luck at raising.py:2"),
        ("leaving.py:net", "failed: SystemExit"),
        ("good.py:nothing", "has no 'nothing'; it has make"),
        ("good.py:make.deeper", "has no 'make.deeper'"),
        ("no_such_package.module:net", "ModuleNotFoundError"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(tmp_path: Path, reference: str, reason: str) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "raising.py").write_text("\nraise ValueError('no such luck\\nand more')\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "good.py").write_text("def make(): pass\n")
    with pytest.raises(UsageError, match=reason) as caught:
        resolve(reference, option="--model", base=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--model")


def test_an_import_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later.py"
    path.write_text("raise ValueError('not yet')\n")
    with pytest.raises(UsageError):
        resolve(f"{path}:VALUE", option="--model")
    path.write_text("VALUE = 5  # now\n")
    assert resolve(f"{path}:VALUE", option="--model")[0] == 5
