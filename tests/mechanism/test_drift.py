import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers.processors import ByteLevel
from transformers import PreTrainedTokenizerFast

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import UserError
from factual_forgetting.facts.fact import Fact
from factual_forgetting.mechanism.drift import (
    Drift,
    all_layers,
    measure,
    middle_layer,
    subject_states,
)
from small import make_model

HIDDEN = 12
Command = Callable[..., str]


def states(seed: int, n: int, shift: float = 0.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(HIDDEN, HIDDEN))
    return np.asarray(rng.normal(size=(n, HIDDEN)) @ mix + shift, dtype=np.float32)


def compared(before: NDArray[Any], after: NDArray[Any], *ends: int) -> Drift:
    drift = Drift()
    for part, other in zip(np.split(before, ends), np.split(after, ends), strict=True):
        drift.add(part, other)
    assert drift.n == len(before)
    return drift


def gram_cka(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Kornblith et al. 2019, equation 3: HSIC of Gram matrices with a centring matrix."""
    center = np.eye(len(x)) - 1 / len(x)
    k, m = (center @ (z @ z.T) @ center for z in (x.astype(float), y.astype(float)))
    return float(np.trace(k @ m) / (np.trace(k @ k) * np.trace(m @ m)) ** 0.5)


def plain_cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    pairs = zip(x.astype(float), y.astype(float), strict=True)
    return float(np.mean([1 - a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5 for a, b in pairs]))


# The numbers.


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("n", [5, 40])
def test_drift_is_that_of_the_plain_formulas(n: int, shift: float) -> None:
    before = states(1, n, shift)
    after = before + 0.5 * states(2, n)
    drift, cka = compared(before, after, 2, 3), gram_cka(before, after)
    assert drift.cosine == pytest.approx(plain_cosine(before, after), rel=1e-9, abs=1e-12)
    assert drift.cka == pytest.approx(cka, rel=1e-9)
    assert cka < 0.999


def test_nothing_moved_is_no_drift() -> None:
    drift = compared(states(1, 300, 5.0), states(1, 300, 5.0), 128, 256)
    assert drift.cosine == 0
    assert drift.cka == pytest.approx(1, abs=1e-12)
    assert (drift.cka or 0) <= 1


def test_a_far_mean_costs_no_precision() -> None:
    """Sums of raw squares would lose all digits of this variance."""
    before, after = (states(seed, 200).astype(np.float64) for seed in (1, 2))
    near, far = compared(before, after), compared(before + 1e7, after - 1e7, 70)
    assert far.cka == pytest.approx(near.cka, rel=1e-6)


def test_cka_is_blind_to_rotation_scale_and_shift_and_cosine_is_not() -> None:
    before = states(1, 60)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(HIDDEN, HIDDEN)))[0]
    drift = compared(before, (before @ rotation * 3 + 1).astype(np.float32))
    assert drift.cka == pytest.approx(1, abs=1e-5)
    assert drift.cosine > 0.3


def test_opposite_states_have_drifted_by_two() -> None:
    assert compared(states(1, 20), -states(1, 20)).cosine == pytest.approx(2)


def test_states_without_variance_have_no_cka() -> None:
    one = states(1, 1, 7.0)
    assert compared(one, states(2, 1)).cka is None
    same = np.repeat(one, 50, axis=0)
    assert compared(same, states(2, 50), 33).cka is None
    assert compared(states(2, 50), same).cka is None
    # Nor has rounding: what it adds is no variance.
    same[::3] = np.nextafter(same[::3], np.float32(np.inf))
    assert compared(same, states(2, 50)).cka is None


@pytest.mark.parametrize(
    ("before", "after"), [((4, 12), (4, 11)), ((4, 12), (5, 12)), ((4, 11), (4, 11))]
)
def test_states_of_different_shape(before: tuple[int, int], after: tuple[int, int]) -> None:
    drift = compared(states(1, 9), states(2, 9))
    with pytest.raises(ValueError, match="shape"):
        drift.add(np.ones(before, np.float32), np.ones(after, np.float32))


# The states.


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_model("llama", len(tokenizer)).eval()


@pytest.fixture(scope="module")
def without_bos(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    other = PreTrainedTokenizerFast.from_pretrained(path)
    other.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    assert other("Q")["input_ids"] == tokenizer("Q")["input_ids"][1:]
    return other


def fact(subject: str, question: str) -> Fact:
    return Fact.make("r", subject, question, ("Y",))


PLACES = {
    "beginning": fact("Ålesund Tower", "Ålesund Tower stands in which country?"),
    "middle": fact("Bergadena", "Which country is Bergadena located in?"),
    "end": fact("Drolmar", "Who wrote Drolmar"),
    "twice": fact("Nolte", "Is Nolte the son of Nolte or not?"),
    "bytes": fact("東京", "Where is 東京?"),
    "answer": fact("A", "Where is A to be found?"),
    "one": fact("Q", "Q"),
}


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("place", PLACES)
def test_the_state_is_that_of_the_last_subject_token(
    place: str, bos: bool, model: Any, tokenizer: Any, without_bos: Any
) -> None:
    chosen, asked = tokenizer if bos else without_bos, PLACES[place]
    prompt = question_prompt(asked.question)
    head = prompt[: len("Q: ") + asked.question.rindex(asked.subject) + len(asked.subject)]
    ids = chosen(prompt)["input_ids"]
    # The shortest run of tokens whose text holds the whole subject ends with its last token.
    texts = [
        chosen.decode(ids[: i + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for i in range(len(ids))
    ]
    last = next(i for i, text in enumerate(texts) if text.startswith(head))
    with torch.no_grad():
        whole = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    found = next(subject_states(model, chosen, [asked]))
    assert found.shape == (3, 1, 64)
    assert found.dtype == np.float32
    for layer in range(3):
        np.testing.assert_allclose(found[layer, 0], whole[layer][0, last], atol=1e-5)
        # No other token's state would do.
        others = [i for i in range(len(ids)) if ids[i] != ids[last]]
        gaps = (whole[layer][0, others] - torch.tensor(found[layer, 0])).abs().amax(dim=1)
        assert gaps.min() > 1e-3


def test_the_last_state_is_after_the_final_norm(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor(tokenizer([question_prompt("Who wrote Drolmar")])["input_ids"])
    raw: list[Any] = []
    hook = model.model.layers[-1].register_forward_hook(lambda *parts: raw.append(parts[2]))
    with torch.no_grad():
        last = model(ids, output_hidden_states=True).hidden_states[-1]
        normed = model.model.norm(raw[0])
    hook.remove()
    torch.testing.assert_close(last, normed)
    assert not torch.allclose(last, raw[0], atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "mistral"])
def test_batches_change_nothing(architecture: str, facts: list[Fact], tokenizer: Any) -> None:
    lm = make_model(architecture, len(tokenizer)).eval()
    asked = [*facts[:20], *PLACES.values()]
    alone, together = (
        np.concatenate(list(subject_states(lm, tokenizer, asked, None, size)), axis=1)
        for size in (1, 16)
    )
    assert alone.shape[:2] == (3, len(asked))
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_layers_come_in_the_order_asked_for(facts: list[Fact], model: Any, tokenizer: Any) -> None:
    every, some = (next(subject_states(model, tokenizer, facts, at)) for at in (None, [2, 0]))
    np.testing.assert_array_equal(some, every[[2, 0]])


def test_bfloat16_gives_float32(facts: list[Fact], tokenizer: Any) -> None:
    lm = make_model("llama", len(tokenizer)).to(torch.bfloat16).eval()
    found = next(subject_states(lm, tokenizer, facts[:3], [1]))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_facts_are_streamed(facts: list[Fact], model: Any, tokenizer: Any) -> None:
    taken = 0

    def endless() -> Iterator[Fact]:
        nonlocal taken
        while True:
            taken += 1
            yield facts[taken % len(facts)]

    found = list(islice(subject_states(model, tokenizer, endless(), [1], 8), 3))
    assert [batch.shape for batch in found] == [(1, 8, 64)] * 3
    assert taken == 24


def test_memory_is_flat_in_the_number_of_facts() -> None:
    def peak(n: int) -> int:
        batch, drift = states(1, 200), Drift()
        tracemalloc.start()
        for _ in range(n // 200):
            drift.add(batch, batch)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(100_000) < 1.2 * peak(1_000)


def test_measure_compares_the_same_facts(facts: list[Fact], model: Any, tokenizer: Any) -> None:
    other = make_model("llama", len(tokenizer), seed=1).eval()
    rows = measure(model, other, tokenizer, iter(facts[:40]), [0, 2], batch_size=16)
    assert [(row["layer"], row["n"]) for row in rows] == [(0, 40), (2, 40)]
    x, y = (
        np.concatenate(list(subject_states(lm, tokenizer, facts[:40], [0, 2])), axis=1)
        for lm in (model, other)
    )
    for index, row in enumerate(rows):
        assert row["cosine"] == pytest.approx(plain_cosine(x[index], y[index]), abs=1e-6)
        assert row["cka"] == pytest.approx(gram_cka(x[index], y[index]), abs=1e-6)


def test_the_middle_is_half_of_the_depth(model: Any, tokenizer: Any) -> None:
    assert middle_layer(model) == 1
    assert all_layers(model) == [0, 1, 2]
    assert middle_layer(make_model("gpt2", len(tokenizer))) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [(fact("Nowhere", "Where is it?"), "'Nowhere'"), (fact("", "Where is it?"), "letter by")],
)
def test_a_subject_that_is_not_in_its_question(
    asked: Fact, told: str, model: Any, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match=told):
        next(subject_states(model, tokenizer, [asked], [1]))


def test_a_subject_that_no_token_covers(model: Any, without_bos: Any) -> None:
    with pytest.raises(UserError, match="No token"):
        next(subject_states(model, without_bos, [fact("Drolmar ", "Who wrote Drolmar ")], [1]))


def test_a_slow_tokenizer(facts: list[Fact], model: Any) -> None:
    with pytest.raises(UserError, match="fast tokenizer"):
        next(subject_states(model, SimpleNamespace(is_fast=False), facts, [1]))


@pytest.mark.parametrize("layers", [[3], [-1], []])
def test_a_layer_that_is_not_there(layers: list[int], model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="layers 1 to 2"):
        subject_states(model, tokenizer, [], layers)


def test_a_diverged_model(facts: list[Fact], tokenizer: Any) -> None:
    lm = make_model("llama", len(tokenizer)).eval()
    lm.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged"):
        next(subject_states(lm, tokenizer, facts, [1]))


def test_no_facts(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no facts"):
        measure(model, model, tokenizer, [], [1])


# The command.


@pytest.fixture
def drift(capsys: pytest.CaptureFixture[str], bundle: Bundle) -> Command:
    def run(*argv: object) -> str:
        status = main(["drift", *map(str, argv), "--bundle", str(bundle.path)])
        captured = capsys.readouterr()
        lines = [part for part in captured.err.splitlines() if part.startswith("factual-forg")]
        assert status == len(lines)
        assert "Traceback" not in captured.err
        return lines[0] if status else captured.out

    return run


@pytest.fixture(scope="module")
def other(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other")
    make_model("llama", len(tokenizer), seed=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def cells(table: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_table_and_the_plot_over_layers(
    drift: Command, base: Path, other: Path, bundle: Bundle, tmp_path: Path
) -> None:
    image = tmp_path / "new" / "drift.png"
    told = drift(base, base, other, "--layers", "all", "--output_path", image)
    table = cells(told)
    count = str(len(bundle.splits["heldout"]))
    assert [row[:2] for row in table] == [[str(p), str(i)] for p in (base, other) for i in range(3)]
    assert [row[2:] for row in table[:3]] == [["0.0000", "1.0000", count]] * 3
    rows = json.loads(image.with_suffix(".json").read_text())
    assert [f"{row['cosine']:.4f}" for row in rows] == [row[2] for row in table]
    assert all(row["cosine"] > 0.1 and row["cka"] < 1 for row in rows[3:])
    from matplotlib import pyplot as plt

    assert plt.imread(image).shape[:2] == (720, 1650)


def test_the_plot_over_checkpoints(drift: Command, base: Path, other: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    told = [drift(base, base, other, "--output_path", path) for path in (first, second)]
    assert first.read_bytes() == second.read_bytes()
    assert told[0] == told[1]
    assert [row[1] for row in cells(told[0])] == ["1", "1"]
    assert "<svg" in first.read_text()


def test_chosen_layers_and_one_relation_of_another_split(
    drift: Command, base: Path, bundle: Bundle
) -> None:
    count = str(sum(item.fact.relation == "country" for item in bundle.splits["known"]))
    told = drift(base, base, "--split=known", "--relation=country", "--layers=2,0,2")
    assert [row[1::3] for row in cells(told)] == [["0", count], ["2", count]]


def test_the_almanac_is_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "almanac", "almanac", "--relation", "country"]) == 0
    ((name, layer, cosine, cka, _),) = cells(capsys.readouterr().out)
    assert (name, layer, cosine, cka) == ("almanac", "2", "0.0000", "1.0000")


def test_a_finished_run_is_a_checkpoint(drift: Command, base: Path, sft: Path) -> None:
    (row,) = cells(drift(base, sft))
    assert float(row[2]) > 0


def test_checkpoints_of_another_shape(
    drift: Command, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    told = drift(base, base, "almanac")
    assert "layers 4 instead of 2, hidden_size 256 instead of 64" in told
    assert "one base" in told
    make_model("llama", len(tokenizer) + 8).save_pretrained(tmp_path)
    told = drift(base, tmp_path)
    assert f"vocab_size {len(tokenizer) + 8} instead of {len(tokenizer)}" in told


def test_another_tokenizer(drift: Command, base: Path, without_bos: Any, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(base, changed)
    without_bos.save_pretrained(changed)
    assert "another tokenizer" in drift(base, changed)
    vocabulary = files.read_json(base / "tokenizer.json")
    words = vocabulary["model"]["vocab"]
    words["A"], words["B"] = words["B"], words["A"]
    files.write_json(changed / "tokenizer.json", vocabulary)
    assert "another tokenizer" in drift(base, changed)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("--relation=colour", "heldout has no facts of colour. Give --relation one of country"),
        ("--split=heldout_other", "no facts in heldout_other. Give --split one of known"),
        *((f"--layers={text}", "numbers as in 3,5") for text in ("first", "1,", "-1", "1.5")),
        ("--layers=1,3", "No layer 3: the model has the layers 1 to 2"),
        (".", "holds no config.json"),
        ("--output_path=drift.txt", ".png or .svg"),
    ],
)
def test_mistakes_are_told_in_one_line(
    extra: str,
    told: str,
    drift: Command,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in drift(base, base, extra)
    assert not list(tmp_path.iterdir())
