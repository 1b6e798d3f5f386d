"""The engine for causal models of transformers: shared prefixes, drafts, and an early stop.

The model's own choice is taken at every token. What accepted answers would say is computed
ahead: where the choices agree, a whole answer is finished in one forward pass. In exact
arithmetic the answers are those of plain greedy decoding (by induction over positions); in
bf16 they differ from it as they do between batch sizes.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, islice, takewhile
from typing import Any

from factual_forgetting.engines.decoding import stop_ids
from factual_forgetting.engines.engine import Answer, Engine, Group, Query, Sampling
from factual_forgetting.engines.models import context_length
from factual_forgetting.engines.plain import generate_plainly
from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.engines.reach import reachable, skeletons
from factual_forgetting.engines.tree import Branch, TreeModel, UnsupportedModelError
from factual_forgetting.facts.fact import Fact, stable_fraction
from factual_forgetting.facts.matching import MATCHER_VERSION, first_line, is_correct

_REMEMBERED = 20_000
# What transformers' decoders rewrite at word ends, where a tokenizer asks for it (" n't").
_REWRITTEN = " .?!,'nmtsvre"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is worked out once for a question, whatever its prefix."""

    tail: list[int]  # the question's tokens
    drafts: list[tuple[int, ...]]  # tokens of its accepted answers
    expected: list[tuple[int, ...]]  # those of the first one
    accepted: tuple[str, ...]  # what `reach.skeletons` gives for them


@dataclass(slots=True)
class _Question:
    """A question in one prompt, and the answers of its samples as they finish."""

    query: Query
    known: _Known
    tail: list[int]  # what its prompt adds to those of all
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(slots=True)
class _Walk:
    """Samples of one question that agree so far; a greedy answer is one sample."""

    question: _Question
    samples: Sequence[int]
    tokens: tuple[int, ...]  # generated so far
    margin: float  # the smallest over them
    branch: Branch  # what to compute next


class PrefixEngine(Engine):
    """Answers with a causal model of transformers, every shared beginning computed once."""

    name = "prefix"
    batch_size: int

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 256) -> None:
        """Wraps a causal language model of transformers in eval mode, and its tokenizer.

        Args:
            model: One that `TreeModel` can compute, or it raises its UnsupportedModelError.
            tokenizer: The model's.
            batch_size: Questions in one forward pass.
        """
        self._tokenizer, self.batch_size = tokenizer, batch_size
        self._tree = TreeModel(model)
        self._stops = stop_ids(model, tokenizer)
        self._context = context_length(model) or math.inf
        self._known: dict[Query, _Known] = {}
        self._separable = True

    @property
    def computed(self) -> int:
        """Tokens computed so far, padding included."""
        return self._tree.computed

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the number of tokens of texts."""
        return [len(ids) for ids in self._ids(list(texts), special=False)]

    def _generate(
        self, groups: Sequence[Group], most: int, verdict_only: bool, sampling: Sampling | None
    ) -> list[list[list[Answer]]]:
        rules = _Rules(self._tokenizer, self._stops, most, verdict_only, sampling)
        return [self._run(group, rules) for group in groups]

    def _run(self, group: Group, rules: _Rules) -> list[list[Answer]]:
        if not group.queries:
            return []
        head, tails = self._encode(group)
        self._require_room(len(head) + max(map(len, tails)) + rules.max_new_tokens, self._context)
        common = _common_prefix(tails)
        self._tree.start(head + tails[0][:common])
        questions = [
            _Question(query, self._known[query], tail[common:])
            for query, tail in zip(group.queries, tails, strict=True)
        ]
        waiting = sorted(questions, key=lambda question: question.tail)
        while waiting:
            batch = waiting[: self.batch_size]
            with self._halving(len(batch)):
                self._decode(batch, rules)
                waiting = waiting[len(batch) :]
        return [[q.answers[sample] for sample in rules.samples] for q in questions]

    def _decode(self, questions: Sequence[_Question], rules: _Rules) -> None:
        """Computes the tails, then goes on until every sample is answered."""
        walks = []
        for question in questions:
            expected = question.known.expected if question.query.likely else []
            tree = _tree(question.tail, rules.within(expected))
            walks.append(_Walk(question, rules.samples, (), math.inf, tree))
        while walks:
            tokens, logits = self._tree.compute([walk.branch for walk in walks], rules.top)
            walks = [
                following
                for found in zip(walks, tokens, logits, strict=True)
                for following in rules.advance(*found)
            ]

    def _encode(self, group: Group) -> tuple[list[int], list[list[int]]]:
        """Tokenises prompts as a prefix and tails that joined are the tokens of the whole.

        Whether the boundary holds is checked for every new question and every new prefix; a
        tokenizer that fails once (SentencePiece marks where a text starts) gets whole prompts.
        """
        if fresh := list(dict.fromkeys(q for q in group.queries if q not in self._known)):
            if len(self._known) > _REMEMBERED:
                kept = set(group.queries)
                self._known = {q: known for q, known in self._known.items() if q in kept}
            self._known |= zip(fresh, self._learn(fresh), strict=True)
        if self._separable:
            head = self._ids([group.prefix], special=True)[0]
            checked = [group.queries[0], *fresh]
            whole = self._ids([group.prefix + query.text for query in checked], special=True)
            self._separable = whole == [head + self._known[query].tail for query in checked]
        if self._separable:
            return head, [self._known[query].tail for query in group.queries]
        return [], self._ids([group.prefix + query.text for query in group.queries], special=True)

    def _learn(self, queries: Sequence[Query]) -> Iterator[_Known]:
        """Tokenises questions, and the answers that they may get."""
        # With a newline too: a full stop and a newline may be one token, as after "Jr."
        answers = ((query.text, answer) for query in queries for answer in query.accepted)
        texts = [f"{text} {answer}{end}" for text, answer in answers for end in ("", "\n\n")]
        guesses = iter(self._ids(texts, special=False))
        tails = self._ids([query.text for query in queries], special=False)
        for query, tail in zip(queries, tails, strict=True):
            drafts = [
                tuple(takewhile(lambda token: token not in self._stops, guess[len(tail) :]))
                for guess in islice(guesses, 2 * len(query.accepted))
                if guess[: len(tail)] == tail
            ]
            # All aliases cost more to compute than they save.
            yield _Known(tail, sorted({*drafts}), drafts[:2], skeletons(query.accepted))

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:  # transformers' tokenizers fail on no text
            return []
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
        return found


@dataclass(frozen=True, slots=True)
class _Rules:
    """How tokens are chosen, and when an answer ends."""

    tokenizer: Any
    stops: frozenset[int]
    max_new_tokens: int
    verdict_only: bool
    sampling: Sampling | None

    @property
    def samples(self) -> Sequence[int]:
        return range(self.sampling.samples if self.sampling else 1)

    @property
    def top(self) -> int:
        return min(self.sampling.top_k, len(self.tokenizer)) if self.sampling else 2

    def drafts(self, known: _Known, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns how accepted answers go on after tokens, as far as there is room."""
        done = len(tokens)
        going_on = [draft for draft in known.drafts if draft[:done] == tokens]
        return [draft[done:] for draft in self.within(going_on)]

    def within(self, drafts: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Cuts drafts to the room that an answer has."""
        return [draft[: self.max_new_tokens - 1] for draft in drafts]

    def advance(
        self, walk: _Walk, choices: list[list[int]], logits: list[list[float]]
    ) -> list[_Walk]:
        """Follows the best tokens after each wanted one down what was computed.

        Answers that end are left with the walk's question; what goes on is returned.
        """
        branch, question, text = walk.branch, walk.question, walk.question.query.text
        nodes = zip(branch.parents, branch.tokens, strict=True)
        children = {node: position for position, node in enumerate(nodes)}
        first = branch.wanted[0]
        path = branch.path + branch.columns[:first]
        reached = [(first, walk.samples, walk.tokens, walk.margin, path)]
        following = []
        while reached:
            position, samples, tokens, margin, path = reached.pop()
            best, values = choices[position - first], logits[position - first]
            margin = min(margin, values[0] - values[1])
            path = [*path, branch.columns[position]]
            for token, drawn in self._choose(text, samples, len(tokens), best, values):
                grown = (*tokens, token)
                ended = token in self.stops or len(grown) >= self.max_new_tokens
                if not ended and (position, token) in children:
                    reached.append((children[position, token], drawn, grown, margin, path))
                elif ended or self._hopeless(question.known, grown):
                    told = None if self.sampling else margin
                    said = first_line(self.tokenizer.decode(grown, skip_special_tokens=True))
                    question.answers |= dict.fromkeys(drawn, Answer(said, told, not ended))
                else:
                    drafts = self.drafts(question.known, grown)
                    tree = _tree([token], drafts, branch.row, path)
                    following.append(_Walk(question, drawn, grown, margin, tree))
        return following

    def _choose(
        self, text: str, samples: Sequence[int], step: int, tokens: list[int], logits: list[float]
    ) -> Iterable[tuple[int, Sequence[int]]]:
        """Pairs each chosen token with the samples that chose it."""
        if self.sampling is None:
            return [(tokens[0], samples)]
        weights = [math.exp((logit - logits[0]) / self.sampling.temperature) for logit in logits]
        sums = list(accumulate(weights))
        chosen: dict[int, list[int]] = defaultdict(list)
        for sample in samples:
            drawn = stable_fraction(self.sampling.seed, text, sample, step)
            chosen[tokens[bisect_left(sums, drawn * sums[-1])]].append(sample)
        return chosen.items()

    def _hopeless(self, known: _Known, tokens: tuple[int, ...]) -> bool:
        if not self.verdict_only or self.drafts(known, tokens):
            return False
        # The bytes of a character that is not complete don't count.
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            text = text.rstrip(_REWRITTEN)
        return not reachable(text, known.accepted)


def _tree(
    tokens: list[int], drafts: Iterable[Sequence[int]], row: int = 0, path: Sequence[int] = ()
) -> Branch:
    """Builds what to compute next: tokens that are certain, and drafts of what follows.

    What follows is asked for after the last certain token and after each drafted one.
    """
    last = len(tokens) - 1
    tree = Branch([*tokens], list(range(-1, last)), [last], row, [*path])
    children: dict[tuple[int, int], int] = {}
    for draft in drafts:
        parent = last
        for token in draft:
            position = children.setdefault((parent, token), len(tree.tokens))
            if position == len(tree.tokens):
                tree.tokens.append(token)
                tree.parents.append(parent)
                tree.wanted.append(position)
            parent = position
    return tree


def _common_prefix(ids: list[list[int]]) -> int:
    """Length of the longest common head that leaves every row at least one token."""
    first, last = min(ids), max(ids)
    limit = min(map(len, ids)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def ask_facts(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    max_new_tokens: int,
    preface: Callable[[Fact], str] = lambda fact: "",
    matcher: str = MATCHER_VERSION,
) -> list[bool]:
    """Tells which facts a model answers right, in their order: lm-eval's greedy verdicts.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        facts: Facts to ask.
        max_new_tokens: Most tokens of an answer.
        preface: What stands before a fact's zero-shot prompt, exemplars say; nothing by default.
        matcher: The version that judges.
    """
    heads = [preface(fact) for fact in facts]
    # What can't become right any more is known of this version alone.
    brief = matcher == MATCHER_VERSION
    texts = _answer(model, tokenizer, facts, heads, max_new_tokens, verdict_only=brief)
    return [is_correct(t, fact.accepted, matcher) for t, fact in zip(texts, facts, strict=True)]


def answer_zero_shot(
    model: Any, tokenizer: Any, facts: Sequence[Fact], max_new_tokens: int
) -> list[str]:
    """Answers facts greedily in the protocol's zero-shot prompt, as `ask_facts` asks them."""
    return _answer(model, tokenizer, facts, [""] * len(facts), max_new_tokens)


def _answer(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    heads: Sequence[str],
    most: int,
    *,
    verdict_only: bool = False,
) -> list[str]:
    """Answers facts after their heads, in their order.

    Where the model can't be computed over trees, transformers generates the same answers, and
    stderr tells so.
    """
    try:
        engine = PrefixEngine(model, tokenizer)
    except UnsupportedModelError as error:
        _tell(f"engine: transformers' generate (the prefix engine can't run this model: {error})\n")
        prompts = [h + question_prompt(f.question) for h, f in zip(heads, facts, strict=True)]
        return generate_plainly(model, tokenizer, prompts, stop_ids(model, tokenizer), most)
    places: dict[str, list[int]] = defaultdict(list)
    for place, head in enumerate(heads):
        places[head].append(place)
    queries = [Query(question_prompt(f.question), f.accepted, likely=True) for f in facts]
    groups = [Group(head, [queries[place] for place in own]) for head, own in places.items()]
    found = engine.answer(groups, most, verdict_only=verdict_only)
    texts = [""] * len(facts)
    for own, answers in zip(places.values(), found, strict=True):
        for place, answer in zip(own, answers, strict=True):
            texts[place] = answer.text
    return texts


@cache
def _tell(line: str) -> None:
    """Once: a curve asks at every point."""
    sys.stderr.write(line)
