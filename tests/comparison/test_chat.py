from pathlib import Path

import pytest

from factual_forgetting.comparison.contestants import Contestant
from factual_forgetting.comparison.interview import Interview, Opening
from factual_forgetting.comparison.questions import Manner, chat_template
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact
from stage import questions, some_facts
from tiny import checkpoint_of

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{{ date_string }}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)
EXEMPLAR = Fact.make("R", "S", "Who is S?", ("Ann",))


def with_template(folder: Path, kind: str, template: str = TEMPLATE) -> Path:
    for file in checkpoint_of(kind=kind, steps=1).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(("kind", "bos"), [("bpe", "<bos>"), ("unigram", "")])
def test_exemplars_are_turns_and_bos_stands_once(tmp_path: Path, kind: str, bos: str) -> None:
    """The engine adds the BOS of a tokenizer that has one around every text."""
    render = chat_template(with_template(tmp_path, kind))
    assert render is not None
    assert render([EXEMPLAR], "Who is T?") == (
        f"{bos}[user]Who is S?\n[assistant]Ann\n[user]Who is T?\n[assistant]26 Jul 2024"
    )


def test_a_checkpoint_without_a_template_is_asked_in_plain_text(tmp_path: Path) -> None:
    assert chat_template(checkpoint_of(steps=1)) is None
    plain = Manner(chat=True).group([EXEMPLAR], [EXEMPLAR], set())
    assert plain.prefix + plain.queries[0].text == "Q: Who is S?\nA: Ann\n\nQ: Who is S?\nA:"


def test_sentences_are_judged_as_sentences() -> None:
    fact = Fact.make("capital", "France", "What is the capital of France?", ("Paris",))
    said = "The capital of France is **Paris**."
    assert Manner(chat=True).right(fact, said)
    assert not Manner().right(fact, said)


def test_a_template_that_fails_is_told(tmp_path: Path) -> None:
    broken = "{{ raise_exception('only one turn') }}"
    render = chat_template(with_template(tmp_path, "bpe", broken))
    assert render is not None
    with pytest.raises(InputError, match=r"chat template in .* fails \(only one turn\)"):
        render([], "Who?")


def test_no_chat_with_a_server(tmp_path: Path) -> None:
    server = Contestant("tuned", "local-completions", {}, {"pretrained": "x"}, None, None)
    asked = questions(some_facts(), style="chat")
    with pytest.raises(InputError, match="tuned is behind a server"):
        Interview(server, asked, Opening(), tmp_path)


def test_another_template_is_another_journal(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder, text in zip(folders, (TEMPLATE, TEMPLATE + "!"), strict=True):
        folder.mkdir()
        with_template(folder, "bpe", text)
    asked = questions(some_facts(), style="chat")
    journals = [
        Interview(Contestant("t", "hf", {}, {}, f, f), asked, Opening(), tmp_path)._journal
        for f in folders
    ]
    assert journals[0] != journals[1]
