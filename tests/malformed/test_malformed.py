"""Every reader, given thousands of malformed files: it reads them, or refuses in one line."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import Specimen, specimens
from trial import bounded, try_cases

from factual_forgetting import files
from factual_forgetting.cli import main
from factual_forgetting.config import load_yaml
from factual_forgetting.errors import UserError

NAMES = (
    "bundle", "labels", "record", "run", "chosen", "results", "facts.jsonl", "facts.jsonl.gz",
    "facts.json", "facts.json.gz", "facts.csv", "facts.csv.gz", "facts.tsv", "facts.tsv.gz",
    "exposures", "pretrain", "protocol", "sweep", "aliases", "official", "checkpoint", "adapter",
)  # fmt: skip
# Those whose reading costs more are read less often.
_CASES = {"pretrain": 120, "protocol": 100, "sweep": 100, "record": 330, "run": 330}
_OTHERS = 240


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Specimen]]:
    """All specimens, in memory where there is such a folder: thousands of copies are made."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield specimens(root)
    shutil.rmtree(root)


@pytest.mark.parametrize("name", NAMES)
def test_valid_specimens_are_read(made: dict[str, Specimen], name: str, tmp_path: Path) -> None:
    assert set(made) == set(NAMES)
    folder = shutil.copytree(made[name].folder, tmp_path / name)
    made[name].seal(folder)
    made[name].read(folder)


@pytest.mark.parametrize("name", NAMES)
def test_malformed_files_are_refused_in_one_line(made: dict[str, Specimen], name: str) -> None:
    scratch = made[name].folder.with_name(f"{name}-malformed")
    ends, wrong = try_cases(made[name], scratch, _CASES.get(name, _OTHERS))
    assert not wrong, "\n".join(wrong[:20])
    assert ends["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_case_of(made: dict[str, Specimen], name: str) -> None:
    scratch = made[name].folder.with_name(f"{name}-malformed")
    _, wrong = try_cases(made[name], scratch)
    assert not wrong, "\n".join(wrong[:20])


_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(VALUES)
)
_ANY = st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(max_examples=150, deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_value_or_no_json(content: bytes) -> None:
    try:
        value = files.loads(content)
    except ValueError:
        return
    assert files.loads(files.dumps(value)) == value


@settings(max_examples=100, deadline=None)
@given(_ANY)
def test_what_the_reader_takes_can_be_written(value: Any) -> None:
    import json

    text = json.dumps(value)
    try:
        read = files.loads(text)
    except ValueError:
        return
    assert files.loads(files.dumps(read).encode()) == read


@settings(max_examples=60, deadline=None)
@given(st.text() | st.binary(max_size=60).map(lambda b: b.decode("latin-1")))
def test_any_yaml_is_a_mapping_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            value = load_yaml(path)
        except UserError:
            return
        files.loads(files.dumps(value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1e400", "beyond every number"),
        ("9" * 400, "more than 64 bits"),
        ("9223372036854775808", "more than 64 bits"),
        ("NaN", "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "a key occurs twice"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("[1] 2", "more follows after its end"),
    ],
)
def test_what_strict_json_refuses(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        files.read_json(path)


def test_a_model_s_configuration_may_hold_what_python_writes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"limit": Infinity, "longest": 1000000000000000019884624838656}')
    assert files.read_json(path, ours=False)["longest"] == 1000000000000000019884624838656


_EXPANDING = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{later}: &{later} [{','.join([f'*{earlier}'] * 9)}]\n"
    for earlier, later in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2", "a key occurs twice"),
        ("a: .inf", "not JSON compliant"),
        ("a: 2020-01-02", "not JSON serializable"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: 99999999999999999999", "more than 64 bits"),
        ("a: " + "x" * 300_000, "larger than 256 KiB"),
        ("- 1", "holds no mapping"),
        (_EXPANDING, "its aliases make too much of it"),
    ],
)  # fmt: skip
def test_what_strict_yaml_refuses(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told):
        load_yaml(path)


def test_yaml_merges_and_anchors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 1e-5}\nb: {<<: *a, x: 2}\n")
    assert load_yaml(path)["b"] == {"x": 2, "y": 1e-5}


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 2**20, 9) * 400)
    with bounded(), pytest.raises(UserError, match=r"line 1: over|far more than an honest file"):
        list(files.read_jsonl(path))


def test_damage_in_gzip_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    packed = bytearray(gzip.compress(b'{"question": "a?"}\n' * 50))
    packed[20] ^= 255
    path = tmp_path / "facts.jsonl.gz"
    path.write_bytes(packed)
    assert main(["facts", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "is not readable" in told
