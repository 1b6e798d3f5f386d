"""What each process of the `fully_shard` test does."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from factual_forgetting import files
from factual_forgetting.protocol import losses
from factual_forgetting.protocol.context import Step
from factual_forgetting.protocol.data import IGNORE, collate
from factual_forgetting.protocol.penalties import _taught
from factual_forgetting.protocol.settings import SelfDistillation
from factual_forgetting.protocol.weights import Frozen
from small import make_model

VOCABULARY = 300


def batch() -> dict[str, torch.Tensor]:
    """Eight rows of different lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in range(6, 14):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE] * 4 + ids[4:]})
    return collate(rows, pad=0)


def loss_of(model: Any, frozen: Frozen, rows: slice, save: Any) -> torch.Tensor:
    """This process's share of cross-entropy and distillation."""
    whole = batch()
    settings = SelfDistillation(tau=0.5)
    part = {name: tensor[rows] for name, tensor in whole.items()}
    inputs = {name: part[name] for name in ("input_ids", "attention_mask")}
    answers = (whole["labels"] != IGNORE).sum()
    positions = losses.distilled_positions(whole["attention_mask"], whole["labels"], "all").sum()
    logits = model(**inputs).logits
    step = Step(model, inputs, logits, part["labels"], rows, answers, positions, 0.5, save)  # type: ignore[arg-type]
    marked = losses.distilled_positions(part["attention_mask"], part["labels"], "all")
    taught = _taught(frozen, step, inputs)
    return losses.cross_entropy(logits, part["labels"], answers) + losses.distillation(
        logits, taught, marked, settings.tau, positions
    )


def save_sharded(model: Any, directory: Path) -> None:
    """Gathers the weights and writes them from one process."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if distributed.get_rank() == 0:
        with files.atomic_directory(directory) as beside:
            model.save_pretrained(beside, state_dict=state)
    distributed.barrier()


def work(rank: int, world: int, port: int, teacher: str, snapshot: str, results: Any) -> None:
    """Trains nothing: compares loss and gradients of a sharded model with those of a whole one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    whole, sharded = make_model("llama", VOCABULARY), make_model("llama", VOCABULARY)
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    assert isinstance(sharded, FSDPModule)
    assert isinstance(sharded.model.layers[0], FSDPModule)
    weight = sharded.model.layers[0].mlp.up_proj.weight
    assert isinstance(weight, DTensor)
    assert weight.to_local().numel() * world == weight.numel()

    expected = loss_of(whole, Frozen(Path(teacher)), slice(None), None)
    expected.backward()
    size = 8 // world
    frozen = Frozen(Path(teacher))
    own = loss_of(sharded, frozen, slice(rank * size, (rank + 1) * size), None)
    (own * world).backward()
    model = frozen.at(None)  # type: ignore[arg-type]
    assert isinstance(model.model.layers[0], FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    total = own.detach().clone()
    distributed.all_reduce(total)
    gradient = weight.grad.full_tensor()
    reference = whole.model.layers[0].mlp.up_proj.weight.grad
    # A snapshot is written whole, and taught from sharded: the student is then its own teacher.
    again = Frozen(Path(snapshot), snapshot=True)
    loss_of(sharded, again, slice(rank * size, (rank + 1) * size), partial(save_sharded, sharded))
    if rank == 0:
        results["loss"] = (total.item(), expected.item())
        results["gradient"] = (gradient - reference).abs().max().item()
        results["scale"] = reference.abs().max().item()
    distributed.destroy_process_group()
