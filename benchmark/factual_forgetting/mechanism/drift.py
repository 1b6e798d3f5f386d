"""Hidden states of subjects: how far they moved in training, and how near new ones come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from operator import length_hint
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from factual_forgetting.engines.prompts import question_prompt
from factual_forgetting.errors import InputError
from factual_forgetting.facts.fact import Fact

_QUESTION_STARTS = question_prompt("\0").index("\0")
# States that differ by no more than the rounding of float32 have no variance.
_ROUNDING = float(np.finfo(np.float32).eps) ** 2
States = NDArray[np.float32]
Row = dict[str, Any]


def all_layers(model: Any) -> list[int]:
    """Returns 0 for the embeddings and the number of each layer."""
    return list(range(model.config.get_text_config().num_hidden_layers + 1))


def middle_layer(model: Any) -> int:
    """Returns half of the depth: 14 of 28, as in the paper's drift experiment."""
    return all_layers(model)[-1] // 2


def subject_states(
    model: Any,
    tokenizer: Any,
    facts: Iterable[Fact],
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Iterator[States]:
    """Yields the states of a batch's subjects, shape (layers, facts in the batch, hidden size).

    The state is that of the last token that covers the last character of the subject, where
    the question names it last, in the protocol's zero-shot prompt. What follows that token is
    cut off: a causal model can't have seen it. Facts are never all held.

    Args:
        model: Causal language model of transformers, in eval mode, of any float type.
        tokenizer: Its tokenizer, a fast one.
        facts: Any number, or a generator.
        layers: 0 for the embeddings, i for the output of layer i, as in the
            `hidden_states` of transformers, whose last entry is taken after the final norm;
            all by default.
        batch_size: Facts in a batch.

    Raises:
        UserError: For a wrong layer, a slow tokenizer, a subject that isn't in its question, or a
            state that isn't finite.
    """
    there = all_layers(model)
    chosen = there if layers is None else layers
    wrong = [layer for layer in chosen if layer not in there]
    if wrong or not chosen:
        told = ", ".join(map(str, wrong)) or "given"
        raise InputError(
            f"No layer {told}: the model has the layers 1 to {there[-1]}, and 0 for the "
            "embeddings. Choose among them."
        )
    stream = iter(facts)
    batches = iter(lambda: list(islice(stream, batch_size)), [])
    return (_states(model, _subject_tokens(tokenizer, batch), chosen) for batch in batches)


def _subject_tokens(tokenizer: Any, facts: Sequence[Fact]) -> list[list[int]]:
    """Returns the tokens of each prompt up to the last one of the subject."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} doesn't tell which characters a token covers. Save the "
            "checkpoint with a fast tokenizer (tokenizer.json)."
        )
    prompts = [question_prompt(fact.question) for fact in facts]
    encoded = tokenizer(prompts, return_offsets_mapping=True)
    rows = zip(facts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [ids[: _last_subject_token(fact, spans) + 1] for fact, ids, spans in rows]


def _last_subject_token(fact: Fact, spans: Sequence[tuple[int, int]]) -> int:
    start = fact.question.rfind(fact.subject) if fact.subject else -1
    if start < 0:
        raise InputError(
            f"The question '{fact.question}' doesn't name its subject '{fact.subject}'. Mend the "
            "fact: the subject has to stand in the question, letter by letter."
        )
    place = _QUESTION_STARTS + start + len(fact.subject) - 1
    # A character of several bytes may be covered by several tokens: the last has seen it whole.
    covering = [index for index, (first, end) in enumerate(spans) if first <= place < end]
    if not covering:
        raise InputError(
            f"No token of the tokenizer covers the end of the subject '{fact.subject}'. Leave "
            "the fact out, or mend the subject."
        )
    return covering[-1]


def _states(model: Any, rows: Sequence[list[int]], layers: Sequence[int]) -> States:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = [torch.tensor(ids, device=model.device) for ids in rows]
    inputs = {
        "input_ids": pad_sequence(tokens, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in tokens], batch_first=True),
    }
    index, ends = torch.arange(len(rows)), torch.tensor([len(ids) - 1 for ids in rows])
    with torch.inference_mode():
        # Without the head, whose logits would be the largest thing in memory.
        found = model.base_model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        chosen = torch.stack([found[layer][index, ends].float() for layer in layers])
    if not chosen.isfinite().all():
        raise InputError(
            "The model's hidden states aren't finite: its training diverged, or its numbers "
            "overflow. Give an earlier checkpoint, or load it in float32."
        )
    return np.asarray(chosen.cpu(), dtype=np.float32)


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales vectors, one a row, to length 1; a vector of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float64).tiny))


def nearness(held: States, new: Iterable[States], nearest: int = 5) -> NDArray[np.float64]:
    """Returns how near the new subjects come to each held-out one.

    States share a large common direction, which would make all cosines alike: the held-out mean
    is subtracted from both sides first. The new states are streamed, one batch in memory.

    Args:
        held: States of held-out subjects, shape (facts, hidden size).
        new: Batches of states of new subjects, each of shape (subjects, hidden size).
        nearest: How many of the most similar new subjects to average over.

    Returns:
        Mean cosine similarity to the nearest new subjects, shape (facts,).

    Raises:
        UserError: Without held-out subjects, or `nearest` (at least 1) new ones.
    """
    if nearest < 1:
        raise InputError(f"The {nearest} nearest subjects are none. Ask for at least one.")
    if not len(held):
        raise InputError("There are no held-out subjects to measure overlap with. Give some.")
    center = held.mean(axis=0, dtype=np.float64)
    own = _directions(held - center).astype(np.float32)
    top = np.empty((len(held), 0), dtype=np.float32)
    for batch in new:
        other = _directions(batch - center).astype(np.float32)
        similar = np.concatenate([top, own @ other.T], axis=1)
        least = max(similar.shape[1] - nearest, 0)
        top = np.partition(similar, least, axis=1)[:, least:] if least else similar
    if top.shape[1] < nearest:
        raise InputError(
            f"{top.shape[1]} new subjects are fewer than the {nearest} nearest asked for. Give "
            "more new facts, or ask for fewer."
        )
    return np.asarray(top.mean(axis=1, dtype=np.float64))


class Drift:
    """How far the states of the same `n` subjects moved in one layer, in one pass over them.

    Memory is flat in their number: (2 * hidden size)^2 sums are kept in float64, 75 MB at a hidden
    size of 1536.
    """

    def __init__(self) -> None:
        self.n, self._distance = 0, 0.0
        # Of both sides as one vector; the first facts give them their shape.
        self._mean: NDArray[np.float64] = np.zeros(())
        self._moments: NDArray[np.float64] = np.zeros(())

    def add(self, before: States, after: States) -> None:
        """Adds the states of facts in both checkpoints, each of shape (facts, hidden size).

        Raises:
            ValueError: If the shapes differ from each other, or from those of other batches.
        """
        units = [_directions(side.astype(np.float64)) for side in (before, after)]
        # Half the squared distance of unit vectors is 1 - cosine, and 0 where they are equal.
        self._distance += float(((units[0] - units[1]) ** 2).sum()) / 2
        pairs = np.concatenate([before, after], axis=1, dtype=np.float64)
        # Centred moments of two parts join without cancellation (Chan, Golub & LeVeque 1983):
        # the shift between their means is one more row.
        mean, total = pairs.mean(axis=0), self.n + len(pairs)
        shift = mean - self._mean
        rows = np.vstack([pairs - mean, shift * np.sqrt(self.n * len(pairs) / total)])
        self._moments = self._moments + rows.T @ rows
        self._mean = self._mean + shift * len(pairs) / total
        self.n = total

    @property
    def cosine(self) -> float:
        """Mean of 1 - cosine over facts, in [0, 2]; 0 if nothing moved."""
        return self._distance / self.n

    @property
    def cka(self) -> float | None:
        """Linear centred kernel alignment, in [0, 1]; 1 if nothing moved.

        Kornblith et al. 2019 (arXiv 1905.00414), section 3: blind to a common shift, rotation
        and scale. It is close to 1 for any states where facts are fewer than the hidden size,
        so compare values of equal n. None where a side has no variance, as with one fact.
        """
        size = len(self._mean) // 2
        sides = (slice(size), slice(size, None))
        for side in sides:
            floor = _ROUNDING * self.n * float(self._mean[side] @ self._mean[side])
            if float(np.trace(self._moments[side, side])) <= floor:
                return None
        own = [float(np.linalg.norm(self._moments[side, side])) for side in sides]
        return min(1.0, float(np.linalg.norm(self._moments[sides])) ** 2 / (own[0] * own[1]))


def measure(
    before_model: Any,
    after_model: Any,
    tokenizer: Any,
    facts: Iterable[Fact],
    layers: Sequence[int],
    batch_size: int = 64,
) -> list[Row]:
    """Measures how far the states of subjects moved from one model to another.

    Args:
        before_model: The reference, in eval mode.
        after_model: Another of the same shape and tokenizer, in eval mode.
        tokenizer: Their tokenizer, a fast one.
        facts: Any number, or a generator.
        layers: As for `subject_states`.
        batch_size: Facts in a batch.

    Returns:
        For each layer `layer`, `cosine` and `cka` as in `Drift`, and `n`, the number of facts.

    Raises:
        UserError: As `subject_states`; or if there are no facts.
    """
    states = [
        subject_states(model, tokenizer, stream, layers, batch_size)
        for model, stream in zip((before_model, after_model), tee(facts), strict=True)
    ]
    drifts = [Drift() for _ in layers]
    total = length_hint(facts) or None
    with tqdm(total=total, desc="drift", unit="fact", leave=False) as shown:
        for before, after in zip(*states, strict=True):
            for drift, x, y in zip(drifts, before, after, strict=True):
                drift.add(x, y)
            shown.update(before.shape[1])
    if not drifts[0].n:
        raise InputError("There are no facts to measure drift on. Give some.")
    return [
        {"layer": layer, "cosine": drift.cosine, "cka": drift.cka, "n": drift.n}
        for layer, drift in zip(layers, drifts, strict=True)
    ]
