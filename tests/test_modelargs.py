from pathlib import Path

import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.modelargs import parse_model_args, parse_pairs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=1e-5,steps=20,name=none it is", {"lr": 1e-5, "steps": 20, "name": "none it is"}),
        (
            "trust_remote_code=False,parallelize=True",
            {"trust_remote_code": False, "parallelize": True},
        ),
        ("add_bos_token=false, x = None ,,", {"add_bos_token": False, "x": None}),
        ("path=a=b,frac=.5", {"path": "a=b", "frac": 0.5}),
        ("pretrained=org/m,revision=12e5", {"pretrained": "org/m", "revision": "12e5"}),
    ],
)
def test_values_have_the_types_that_lm_eval_gives_them(text: str, expected: object) -> None:
    assert parse_pairs(text) == expected


@pytest.mark.parametrize("text", ["a", "a=1,b", "=1", "a=1,b,c=2"])
def test_a_part_without_a_key_or_a_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not key=value"):
        parse_pairs(text)


@pytest.mark.parametrize("name", ["lr=1e-5", "lr1,wd2", "a,b=1,c", "checkpoint"])
def test_a_directory_that_exists_wins_over_any_parsing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "step-10").mkdir(parents=True)
    for path in (name, f"{name}/step-10", str(tmp_path / name)):
        assert parse_model_args(path) == {"pretrained": path}
        given = f"pretrained={path},dtype=float32,use_cache=False"
        expected = {"pretrained": path, "dtype": "float32", "use_cache": False}
        assert parse_model_args(given) == expected
        assert parse_model_args(f"dtype=float32,pretrained={path}")["pretrained"] == path


def test_a_key_stands_once() -> None:
    with pytest.raises(UserError, match=r"a is given twice .* Give it once"):
        parse_pairs("a=1,b=2,a=3")
