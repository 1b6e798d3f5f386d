"""A causal model over token trees: what several prompts begin with is computed once.

Several questions lie side by side in one row of a forward pass. Every token sees the shared
prefix and its own ancestors only, so a row needs no padding between questions, questions
that begin alike share their tokens, and several guesses of one answer are checked at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import Any

from factual_forgetting.engines.models import text_config
from factual_forgetting.errors import reason_of

_ROW_TOKENS = 96
# Of the spread of the logits: rounding in fp32 stays far below it, a wrong position far above.
_TOLERANCE = 1e-3
_FULL, _SLIDING = "full_attention", "sliding_attention"


class UnsupportedModelError(Exception):
    """The model can't be computed over trees; the message says why."""


@dataclass(slots=True)
class Branch:
    """One question in the course of being answered.

    Attributes:
        tokens: Tokens to compute next.
        parents: Of each, the position of its parent in `tokens`; -1 for the last on the path.
        wanted: Positions in `tokens` whose next-token logits are asked for.
        row: Row of the last forward pass in which the path lies.
        path: Columns there of the tokens that lead from the prefix to the question's end.
        columns: Columns there of `tokens`.
    """

    tokens: list[int]
    parents: list[int]
    wanted: list[int]
    row: int = 0
    path: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Row:
    """Branches that are computed side by side; tokens that they share stand here once."""

    branches: list[Branch] = field(default_factory=list)
    # Row and column of their paths' tokens in the last forward pass, and the new column.
    past: dict[tuple[int, int], int] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)  # to compute
    # Of each token, the columns of its ancestors and its own, from the prefix down.
    visible: list[list[int]] = field(default_factory=list)

    def gather_past(self, start: int) -> None:
        """Gives the tokens on the branches' paths new columns, from `start` on."""
        for branch in self.branches:
            for column in branch.path:
                self.past.setdefault((branch.row, column), start + len(self.past))

    def add_tokens(self, number: int, start: int) -> None:
        """Gives the tokens to compute their columns, from `start` on."""
        children: dict[tuple[int, int], int] = {}
        for branch in self.branches:
            branch.path = [self.past[branch.row, column] for column in branch.path]
            branch.row, branch.columns = number, []
            for token, parent in zip(branch.tokens, branch.parents, strict=True):
                if parent >= 0:
                    above = branch.columns[parent]
                    ancestors = self.visible[above - start]
                else:
                    above = branch.path[-1] if branch.path else -1
                    ancestors = branch.path
                column = children.setdefault((above, token), start + len(self.tokens))
                if column == start + len(self.tokens):
                    self.tokens.append(token)
                    self.visible.append([*ancestors, column])
                branch.columns.append(column)


class TreeModel:
    """Computes branches after a shared prefix, and keeps their keys and values.

    Attributes:
        computed: Tokens computed so far, padding included.
    """

    def __init__(self, model: Any) -> None:
        """Wraps a causal language model of transformers.

        Raises:
            UnsupportedModelError: If its attention is neither full nor sliding, or its logits
                over a tree are others than over a text.
        """
        config = text_config(model)
        self._model, self._device, self._dtype = model, model.device, model.dtype
        self._window = getattr(config, "sliding_window", None)
        default = _SLIDING if self._window else _FULL
        self._kinds = sorted(set(getattr(config, "layer_types", None) or [default]))
        if not set(self._kinds) <= {_FULL, _SLIDING}:
            raise UnsupportedModelError(f"its layers are {', '.join(self._kinds)}")
        self._prefix = 0
        self._shared: list[tuple[Any, Any]] = []
        self._last: list[tuple[Any, Any]] = []
        self.computed = 0
        self._probe(config.vocab_size)

    def start(self, prefix: Sequence[int]) -> None:
        """Computes a prefix, which may be empty, and forgets everything before."""
        self._prefix, self._shared, self._last = 0, [], []
        if prefix:
            self.compute([Branch(list(prefix), list(range(-1, len(prefix) - 1)), [])], top=1)
            self._prefix, self._shared = len(prefix), self._last

    def compute(self, branches: Sequence[Branch], top: int) -> tuple[list[Any], list[Any]]:
        """Computes the tokens of branches in one forward pass, and sets their columns.

        Args:
            branches: New ones, or those of the last pass that go on.
            top: How many of the highest logits to return.

        Returns:
            The tokens and their logits (fp32), best first: `[branch][wanted][top]`.
        """
        import torch

        with torch.inference_mode():
            logits = self._logits(branches)
            values, tokens = logits.topk(top, dim=-1)
            # Of equal logits, greedy decoding takes the first token; topk takes any.
            first = logits.argmax(dim=-1, keepdim=True)
            tokens = torch.where(tokens == first, tokens[:, :1], tokens)
            tokens[:, :1] = first
        return _split(branches, tokens.tolist()), _split(branches, values.tolist())

    def _logits(self, branches: Sequence[Branch]) -> Any:
        """Does what `compute` does; returns whole rows of logits, `[wanted, vocabulary]`."""
        rows = _spread(branches)
        for row in rows:
            row.gather_past(self._prefix)
        start = self._prefix + max(len(row.past) for row in rows)
        for number, row in enumerate(rows):
            row.add_tokens(number, start)
        return self._forward(rows, start, self._gather(rows, start)).float()

    def _gather(self, rows: Sequence[_Row], start: int) -> list[list[Any]]:
        """Copies keys and values of the prefix and of each row's paths."""
        import torch

        shared = [[part.expand(len(rows), -1, -1, -1) for part in kv] for kv in self._shared]
        if start == self._prefix:
            return shared
        pasts = [torch.tensor(list(row.past), dtype=torch.long).reshape(-1, 2) for row in rows]
        r, c = _padded(pasts).to(self._device).unbind(-1)
        paths = [[part[r, :, c].transpose(1, 2) for part in kv] for kv in self._last]
        if not shared:
            return paths
        return [
            [torch.cat(parts, dim=2) for parts in zip(*layers, strict=True)]
            for layers in zip(shared, paths, strict=True)
        ]

    def _forward(self, rows: Sequence[_Row], start: int, layers: list[list[Any]]) -> Any:
        """Runs the model; returns logits at the wanted places only, `[wanted, vocabulary]`."""
        import torch
        from transformers import DynamicCache

        ids = _padded([torch.tensor(row.tokens) for row in rows])
        depths = [torch.tensor([len(columns) - 1 for columns in row.visible]) for row in rows]
        positions = _padded(depths) + self._prefix
        wanted = [
            (b.row, b.columns[w] - start) for row in rows for b in row.branches for w in b.wanted
        ]
        r, c = torch.tensor(wanted, dtype=torch.long, device=self._device).reshape(-1, 2).unbind(-1)
        # Only wanted places go through the head: all logits of a large vocabulary fill a GPU.
        hook = self._model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (inputs[0][r, c].unsqueeze(0), *inputs[1:])
        )
        cache = DynamicCache(layers or None)
        try:
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=self._masks(rows, positions, start),
                position_ids=positions.to(self._device),
                past_key_values=cache,
                use_cache=True,
            ).logits
        finally:
            hook.remove()
        self._last = [(layer.keys, layer.values) for layer in cache.layers]
        self.computed += ids.numel()
        return logits[0]

    def _masks(self, rows: Sequence[_Row], positions: Any, start: int) -> Any:
        """Returns additive masks `[row, 1, token, column]`, one for each kind of layer."""
        import numpy as np
        import torch

        end = start + positions.shape[1]
        masks = {}
        for kind in self._kinds:
            window = (self._window if kind == _SLIDING else None) or end
            seen = np.zeros((*positions.shape, end), dtype=bool)
            reach = np.arange(self._prefix) + window
            seen[:, :, : self._prefix] = positions.numpy()[:, :, None] < reach
            for index, row in enumerate(rows):
                near = [columns[-window:] for columns in row.visible]
                counts = list(map(len, near))
                columns = np.fromiter(chain.from_iterable(near), np.int64, sum(counts))
                seen[index, np.repeat(np.arange(len(counts)), counts), columns] = True
                seen[index, len(counts) :] = True  # padding sees all: a row of nothing is NaN
            mask = torch.zeros(seen.shape, dtype=self._dtype)
            mask.masked_fill_(torch.from_numpy(~seen), torch.finfo(mask.dtype).min)
            masks[kind] = mask.unsqueeze(1).to(self._device)
        return masks if len(masks) > 1 else masks[self._kinds[0]]

    def _probe(self, vocabulary: int) -> None:
        """Compares the logits of a small tree with those of the same tokens as texts.

        In fp32: what a wrong position changes is less than what bf16 rounds off.
        """
        import torch

        t = [(7 * i + 3) % vocabulary for i in range(12)]
        tree = Branch([*t[4:8], *t[8:]], [-1, 0, 1, 2, 3, 4, 3, 6], [5, 7])
        try:
            with torch.inference_mode(), _in_fp32(self._model):
                self._dtype = torch.float32
                ids = torch.tensor([t[:10], t[:8] + t[10:]], device=self._device)
                expected = self._model(input_ids=ids).logits[:, -1]
                self.start(t[:4])
                found = self._logits([tree])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(reason_of(error)) from error
        if (found - expected).abs().max() > _TOLERANCE * expected.std():
            raise UnsupportedModelError("it computes other logits over a tree than over a text")
        self._dtype, self.computed = self._model.dtype, 0


@contextmanager
def _in_fp32(model: Any) -> Iterator[None]:
    """Lets a model compute in fp32, each module's own weights wide only while it runs."""
    import torch

    kept: dict[Any, Any] = {}

    def widen(module: Any, _: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight.is_floating_point():
                kept[weight] = weight.data
                with torch.inference_mode(mode=False):
                    weight.data = weight.data.float()

    def restore(module: Any, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            weight.data = kept.pop(weight, weight.data)

    hooks = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, narrow in kept.items():
            weight.data = narrow


def _spread(branches: Sequence[Branch]) -> list[_Row]:
    """Spreads branches evenly over rows of about `_ROW_TOKENS` columns, in their order."""
    ends = list(accumulate(len(branch.path) + len(branch.tokens) for branch in branches))
    rows = [_Row() for _ in range(max(1, round(ends[-1] / _ROW_TOKENS)))]
    for branch, end in zip(branches, ends, strict=True):
        rows[(end - 1) * len(rows) // ends[-1]].branches.append(branch)
    return [row for row in rows if row.branches]


def _split(branches: Sequence[Branch], found: list[Any]) -> list[Any]:
    """Cuts a flat list into one list a branch."""
    rest = iter(found)
    return [list(islice(rest, len(branch.wanted))) for branch in branches]


def _padded(rows: list[Any]) -> Any:
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True)
