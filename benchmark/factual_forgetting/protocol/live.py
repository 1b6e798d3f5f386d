"""Asks a model that is in memory: the protocol's curve does, and the callback of any trainer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from factual_forgetting.engines.prefix import ask_facts
from factual_forgetting.facts.fact import Fact
from factual_forgetting.facts.matching import MATCHER_VERSION


def ask_together(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    max_new_tokens: int,
    preface: Callable[[Fact], str] = lambda fact: "",
    matcher: str = MATCHER_VERSION,
) -> list[bool]:
    """Asks facts as `ask_facts` does, each process its share; every process returns all verdicts.

    All processes of a training call it, with the same facts.
    """
    from torch import distributed

    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    mine = facts[rank::world]
    right = ask_facts(model, tokenizer, mine, max_new_tokens, preface, matcher) if mine else []
    if world == 1:
        return right
    parts: list[list[bool]] = [[] for _ in range(world)]
    distributed.all_gather_object(parts, right)
    found = [False] * len(facts)
    for place, part in enumerate(parts):
        found[place::world] = part
    return found


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Lets a model in training be asked as its checkpoint would be, and leaves no trace of it.

    It is in eval mode, which turns dropout and gradient checkpointing off, and computes in the
    dtype of its weights, without the autocast that accelerate wraps around it. Modes, what trains
    and all random states are afterwards what they were.
    """
    from factual_forgetting.protocol.weights import computing  # needs torch

    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with _same_random_states():
        model.eval()
        try:
            with computing(model, bf16=False):
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, wanted in trained:  # peft's switch of an adapter sets them
                parameter.requires_grad = wanted


@contextmanager
def _same_random_states() -> Iterator[None]:
    import torch

    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # One that nothing has used yet has no state to keep, and asking would start it.
    used: Callable[[], bool] = torch.cuda.is_initialized
    devices = torch.cuda.get_rng_state_all() if used() else []
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)
