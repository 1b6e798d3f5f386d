from pathlib import Path
from types import SimpleNamespace

import pytest

from factual_forgetting import tasks
from factual_forgetting.cli import main
from factual_forgetting.errors import NotFoundError, PackageError


def test_tasks_are_registered_and_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks" / "others").mkdir(parents=True)
    installed = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: installed)
    ours = tasks.tasks_dir() / tasks.GROUP
    target = tmp_path / "tasks" / tasks.GROUP
    for _ in range(2):
        assert main(["register"]) == 0
        copied = {path.name: path.read_bytes() for path in target.iterdir()}
        assert copied == {path.name: path.read_bytes() for path in ours.iterdir()}
    assert str(target) in capsys.readouterr().out
    assert main(["unregister"]) == 0
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["others"]
    assert main(["unregister"]) == 1
    assert "There is nothing to remove" in capsys.readouterr().err


def test_an_installation_without_task_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "GROUP", "lost")
    with pytest.raises(NotFoundError, match=r"Install the package again"):
        tasks.tasks_dir()


def test_nowhere_to_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageError, match=r"Install it: pip install lm_eval"):
        tasks.registered_dir()
