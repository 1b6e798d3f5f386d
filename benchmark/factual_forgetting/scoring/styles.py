"""The prompt styles in which a checkpoint is scored, and the lm-eval tasks that ask them."""

from __future__ import annotations

from dataclasses import dataclass

from factual_forgetting.bundle.manifest import HELDOUT, HELDOUT_OTHER, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.engines.prompts import MAX_NEW_TOKENS, question_prompt
from factual_forgetting.slick.labelling import FRESH, ZERO_SHOT
from factual_forgetting.tasks import GROUP

# Must be the YAML's; a change of any score raises both.
TASK_VERSION = 1.0
_INSTRUCTION = "Answer the last question. Give the answer alone, as in the questions before it."


@dataclass(frozen=True, slots=True)
class Style:
    """One way to ask.

    Attributes:
        group: Its lm-eval group; the tasks' names begin with it.
        outcome: Which outcome of the base its answers are paired with.
        stops: Texts that end generation.
        max_new_tokens: Most tokens of an answer.
        chat: Whether the answer is free text of a chat model.
    """

    group: str
    outcome: str
    stops: tuple[str, ...]
    max_new_tokens: int
    chat: bool = False

    def prompt(self, item: Item, bundle: Bundle) -> str:
        """Returns the text that lm-eval is given; chat templates come around it."""
        question = question_prompt(item.fact.question)
        if self.outcome == ZERO_SHOT:
            return question
        text = bundle.few_shot_prefix(item.fact) + question
        return f"{_INSTRUCTION}\n\n{text}" if self.chat else text

    def tasks(self, bundle: Bundle) -> list[str]:
        """Returns the tasks that a bundle has facts for."""
        return [
            f"{self.group}_{name}" for name, split in SPLIT_OF_TASK.items() if bundle.splits[split]
        ]


SPLIT_OF_TASK = {
    "learning": KNOWN,
    "plasticity": UNKNOWN,
    "stability": HELDOUT,
    "stability_other": HELDOUT_OTHER,
}
TASK, FEWSHOT, CHAT = GROUP, f"{GROUP}_fewshot", f"{GROUP}_chat"
STYLES = {
    TASK: Style(TASK, ZERO_SHOT, ("\n",), MAX_NEW_TOKENS),
    FEWSHOT: Style(FEWSHOT, FRESH, ("\n",), MAX_NEW_TOKENS),
    # A chat model may begin with newlines and talk in sentences, so only its own end stops it.
    # The base has no chat template: its outcome with the same exemplars is the closest.
    CHAT: Style(CHAT, FRESH, (), 64, chat=True),
}


def parse_task(name: str) -> tuple[str, str] | None:
    """Returns the style and split of a task's name (lm-eval 0.5 writes `group::task`), or None."""
    plain = name.split("::")[-1]
    for style in STYLES:
        split = SPLIT_OF_TASK.get(plain.removeprefix(f"{style}_"))
        if split:
            return style, split
    return None
