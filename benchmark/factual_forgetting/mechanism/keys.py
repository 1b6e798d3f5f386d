"""New facts in any number, streamed: name-like, matched and random keys; real and other values.

Name-like keys recombine the tokens of subjects that the base knows; matched keys are the same
recombinations written in tokens that no such subject has; identifiers are random.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import prod
from typing import Any, Literal

from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact, stable_hash

Keys = Literal["name", "identifier", "matched", "known"]
Values = Literal["real", "shuffled", "new", "abstention"]
SLOT = "[X]"
ABSTENTION = "I don't know"
_CHUNK = 512
_HEX_DIGITS = 6
_WORD_STARTS = "\u0120\u2581"  # how byte-level BPE and SentencePiece write the space before a word


def permuted(index: int, size: int, seed: object) -> int:
    """Maps 0 <= index < size to another such number, one to one, by a Feistel network.

    It draws without replacement from a set of any size, and remembers nothing. A number that leaves
    the range is mapped again.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = int(stable_hash(seed, turn, right)[:16], 16) & mask
            left, right = right, left ^ mixed
        index = left << half | right
        if index < size:
            return index


class Recombiner:
    """Invents names out of the tokens of given names.

    The first token is one that some given name begins with, the last one that some ends with;
    lengths in tokens are spread as theirs. A name counts only if the tokenizer makes just the
    drawn tokens of it, so two draws never give the same name. Those `dropped` were taken already.
    """

    def __init__(
        self,
        tokenizer: Any,
        given: Sequence[str],
        taken: Collection[str],
        seed: object,
        partners: Mapping[int, int] | None = None,
    ) -> None:
        """Takes apart the given names of several tokens.

        What comes out is none of those taken, in an order that the seed decides, and written with
        the partners of the drawn tokens, where they have some.
        """
        self._tokenizer, self._taken, self._seed = tokenizer, taken, seed
        self._partners = partners or {}
        parts = [ids for ids in inner_tokens(tokenizer, given) if len(ids) > 1]
        self._lengths = Counter(len(ids) for ids in parts)
        self._first = sorted({ids[0] for ids in parts})
        self._middle = sorted({token for ids in parts for token in ids[1:-1]})
        self._last = sorted({ids[-1] for ids in parts})
        self.dropped = 0

    def possible(self) -> int:
        """Returns how many names there are at most: some may not be tokenised back."""
        return sum(prod(map(len, self._pools(length))) for length in self._lengths)

    def draw(self) -> Iterator[str]:
        """Yields distinct names, until all are drawn."""
        self.dropped = 0
        rng = random.Random(f"lengths-{self._seed}")
        streams = {length: self._of_length(length) for length in sorted(self._lengths)}
        while streams:
            (length,) = rng.choices([*streams], [self._lengths[n] for n in streams])
            name = next(streams[length], None)
            if name is None:
                del streams[length]
            else:
                yield name

    def _pools(self, length: int) -> list[list[int]]:
        return [self._first, *[self._middle] * (length - 2), self._last]

    def _of_length(self, length: int) -> Iterator[str]:
        pools = self._pools(length)
        size = prod(map(len, pools))
        for start in range(0, size, _CHUNK):
            places = range(start, min(start + _CHUNK, size))
            ranks = (permuted(place, size, (self._seed, length)) for place in places)
            for name in self._readable([_digits(rank, pools) for rank in ranks]):
                if name in self._taken:
                    self.dropped += 1
                else:
                    yield name

    def _readable(self, drawn: list[list[int]]) -> list[str]:
        written = [[self._partners.get(token, token) for token in ids] for ids in drawn]
        names = [text.strip() for text in self._tokenizer.batch_decode(written)]
        read = zip(names, written, inner_tokens(self._tokenizer, names), strict=True)
        return [name for name, ids, again in read if ids == again]


def _digits(rank: int, pools: list[list[int]]) -> list[int]:
    """Writes a number in the mixed base of the pools' sizes, and looks the digits up."""
    found = []
    for pool in pools:
        rank, digit = divmod(rank, len(pool))
        found.append(pool[digit])
    return found


def inner_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises names as they stand inside a sentence: after a space."""
    if not texts:
        return []  # transformers' tokenizers fail on no text
    return list(tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"])


def find_partners(tokenizer: Any, given: Sequence[str], banned: Sequence[str]) -> dict[int, int]:
    """Finds, for each token of the given names, one that neither they nor banned texts have.

    Partners are alike in form (begins a word or not, capital or small) and nearest in rank:
    BPE numbers tokens by the frequency of what they merge, so the rank stands for the
    frequency. The map is one to one, so names written in partners share tokens with one another
    as before, and share none with the given names; tokens without letters stay.

    Raises:
        UserError: If the vocabulary has too few tokens of a form.
    """
    own = {token for ids in inner_tokens(tokenizer, given) for token in ids}
    forbidden = own | {token for ids in inner_tokens(tokenizer, banned) for token in ids}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    free: dict[str, list[int]] = defaultdict(list)
    for token, name in enumerate(names):
        if token not in forbidden and token not in tokenizer.all_special_ids:
            free[_form(name)].append(token)
    partners = {}
    for token in sorted(token for token in own if _form(names[token])):
        pool = free[_form(names[token])]
        if not pool:
            raise InputError(
                f"The vocabulary has no token left to stand for '{names[token]}' in matched "
                "keys. Leave matched out of --keys, or choose another --relation."
            )
        partners[token] = min(pool, key=lambda other: (abs(other - token), other))
        pool.remove(partners[token])
    return partners


def _form(token: str) -> str:
    """Names a token's form; empty for one that isn't of plain letters."""
    body = token.lstrip(_WORD_STARTS)
    if not (body.isascii() and body.isalpha()):
        return ""
    return f"{'word' if body != token else 'inner'} {'capital' if body[0].isupper() else 'small'}"


class Synthetic:
    """New facts of one relation, in any number; the first n of a stream are always the same."""

    def __init__(
        self, bundle: Bundle, tokenizer: Any, relation: str, keys: Keys, values: Values, seed: int
    ) -> None:
        """Reads what the base knows of the relation; the seed decides subjects and answers.

        Raises:
            UserError: If D_Held has no facts of the relation, or the vocabulary no tokens for
                matched keys.
        """
        self._tokenizer, self._relation, self._seed = tokenizer, relation, seed
        self._keys, self._values = keys, values
        self._known = known_facts(bundle, relation)
        self._told = [item.fact for item in bundle.splits[KNOWN]]
        self._taken = {item.fact.subject for _, item in bundle.items()}
        self._template = template_of(self._known)
        self._recombiner = self._recombine() if keys in ("name", "matched") else None

    @property
    def dropped(self) -> int:
        """Keys drawn so far that are subjects of the bundle already."""
        return self._recombiner.dropped if self._recombiner else 0

    def facts(self, count: int) -> Iterator[Fact]:
        """Yields new facts.

        Raises:
            UserError: If so many keys can't be formed.
        """
        made, possible = 0, self._possible()
        for fact in islice(self._stream(), count if count <= possible else 0):
            made += 1
            yield fact
        if made < count:
            raise InputError(
                f"{count:,} facts need as many {self._keys} keys; {made or possible:,} can "
                f"be formed for {self._relation} of this bundle. Lower --facts, or choose another "
                "--relation."
            )

    def _possible(self) -> int:
        if self._recombiner:
            return self._recombiner.possible()
        return len(self._told) if self._keys == "known" else 16**_HEX_DIGITS

    def _stream(self) -> Iterator[Fact]:
        if self._keys == "known":
            yield from _swapped(self._told, self._seed)
            return
        keys = self._recombiner.draw() if self._recombiner else self._identifiers()
        for key, value in zip(keys, self._answers(), strict=False):
            question = self._template.replace(SLOT, key)
            yield Fact.make(self._relation, key, question, (value,), split="train")

    def _recombine(self) -> Recombiner:
        given, partners = [fact.subject for fact in self._known], {}
        if self._keys == "matched":
            answers = [answer for fact in self._known for answer in fact.accepted]
            banned = [*answers, self._template.replace(SLOT, "")]
            partners = find_partners(self._tokenizer, given, banned)
        # One seed for both kinds: a matched key is a name-like one in other tokens.
        return Recombiner(self._tokenizer, given, self._taken, self._seed, partners)

    def _identifiers(self) -> Iterator[str]:
        """Yields distinct random identifiers such as `Loc_fcfb42` (Kaplan et al. 2026)."""
        size = 16**_HEX_DIGITS
        for place in range(size):
            name = f"Loc_{permuted(place, size, self._seed):0{_HEX_DIGITS}x}"
            if name not in self._taken:
                yield name

    def _answers(self) -> Iterator[str]:
        """Yields answers without end, as often as the base's known facts have theirs."""
        rng, pool = random.Random(f"values-{self._seed}"), self._pool()
        if not pool:
            raise InputError(
                f"There are no {self._values} values for {self._relation} in this bundle. "
                "Choose other --values."
            )
        while True:
            yield rng.choice(pool)

    def _pool(self) -> list[str]:
        answers = [fact.answers[0] for fact in self._known]
        if self._values == "abstention":
            return [ABSTENTION]
        if self._values == "shuffled":
            return [fact.answers[0] for fact in self._told if fact.relation != self._relation]
        if self._values == "new":
            distinct = sorted(set(answers))
            names = Recombiner(self._tokenizer, distinct, set(distinct), f"new-{self._seed}").draw()
            renamed = dict(zip(distinct, names, strict=False))
            return [renamed[answer] for answer in answers if answer in renamed]
        return answers


def known_facts(bundle: Bundle, relation: str) -> list[Fact]:
    """Returns the facts of a relation that the base knows, from every split but D_Unk.

    Raises:
        UserError: If there are none in D_Held.
    """
    if not any(item.fact.relation == relation for item in bundle.splits[HELDOUT]):
        there = sorted({item.fact.relation for item in bundle.splits[HELDOUT]})
        raise InputError(
            f"D_Held has no facts of the relation {relation}. It has: {', '.join(there)}."
        )
    known = (item.fact for split, item in bundle.items() if split != UNKNOWN)
    return [fact for fact in known if fact.relation == relation]


def template_of(facts: Sequence[Fact]) -> str:
    """Returns the most common question with its subject replaced by a slot."""
    forms = Counter(fact.question.replace(fact.subject, SLOT) for fact in facts)
    return max(forms, key=lambda form: (forms[form], form))


def _swapped(facts: Sequence[Fact], seed: int) -> Iterator[Fact]:
    """Yields known facts with the answer of another fact of their relation."""
    rng = random.Random(f"swapped-{seed}")
    for fact in facts:
        others = [f.answers[0] for f in facts if f.relation == fact.relation]
        wrong = [answer for answer in others if answer not in fact.accepted]
        if wrong:
            yield replace(fact, answers=(rng.choice(wrong),), aliases=())
