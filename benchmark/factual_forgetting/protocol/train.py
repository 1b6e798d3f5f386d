"""Runs one training: protocol x method x bundle x seed -> checkpoint, run.json and curve."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting import __version__, checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.config import Config
from factual_forgetting.environment import environment
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import data as schedule
from factual_forgetting.protocol import methods
from factual_forgetting.protocol.config import Protocol, protocol_sha256
from factual_forgetting.protocol.curve import Curve
from factual_forgetting.slick.engines import load_causal_lm

if TYPE_CHECKING:
    from factual_forgetting.protocol.trainer import Teacher

RUN = "run.json"
LOG = "run.log.json"
_IDENTITY = "run.partial.json"
_RESUME = "resume"
_SNAPSHOT = "snapshot"


def finetune(
    bundle: Bundle,
    protocol: Protocol,
    method_name: str,
    method_config: Config,
    seed: int,
    output: Path,
    *,
    pretrained: str | None = None,
    device_batch_size: int | None = None,
) -> dict[str, Any]:
    """Trains the bundle's base by a method; a finished run is returned as it is.

    Args:
        bundle: The bundle to train on.
        protocol: The recipe.
        method_name: Key of `methods.METHODS`.
        method_config: Its validated settings.
        seed: Decides the order of the facts.
        output: Directory of the run.
        pretrained: Where the base is, if not where the bundle's manifest says.
        device_batch_size: Facts in one forward pass on a device; accumulation makes up the
            protocol's batch. The whole batch by default.

    Returns:
        The content of `run.json`.

    Raises:
        UserError: If the output holds another run, or the base isn't the bundle's.
    """
    base = _locate_base(bundle, pretrained)
    identity = {
        "bundle_sha256": bundle.sha256,
        "base": bundle.manifest["base"],
        "method": {"name": method_name, "settings": method_config.model_dump(mode="json")},
        "protocol": protocol.model_dump(mode="json"),
        "seed": seed,
    }
    if _begun(output, identity):
        return dict(files.read_json(output / RUN))
    started = time.time()
    model, tokenizer = load_causal_lm(base, dtype="float32")
    steps = _train(
        model,
        tokenizer,
        bundle,
        protocol,
        method_name,
        method_config,
        seed,
        output,
        base,
        device_batch_size or protocol.batch_size,
    )
    _save(model, tokenizer, protocol.checkpoint_dtype, output)
    run = {
        **identity,
        "protocol_sha256": protocol_sha256(protocol),
        "steps": steps,
        "weights_sha256": checkpoint.weights_sha256(output),
        "environment": environment(),
        "version": __version__,
    }
    for leftover in (_RESUME, _SNAPSHOT):
        shutil.rmtree(output / leftover, ignore_errors=True)
    files.write_json(output / LOG, {"seconds": time.time() - started})
    files.write_json(output / RUN, run)
    (output / _IDENTITY).unlink(missing_ok=True)
    return run


def _locate_base(bundle: Bundle, pretrained: str | None) -> Path:
    expected = bundle.manifest["base"]
    if pretrained is None and expected["pretrained"] is None:
        raise UserError("The bundle doesn't say where its base is. Give --model_args pretrained=…")
    base = checkpoint.locate(pretrained or expected["pretrained"], expected.get("revision"))
    if checkpoint.weights_sha256(base) != expected["weights_sha256"]:
        raise UserError(
            f"The weights in {base} are not those of the base that this bundle was made for. "
            "Build a bundle for this base, or give the right one with --model_args pretrained=…"
        )
    return base


def _begun(output: Path, identity: dict[str, Any]) -> bool:
    """Tells whether the run is finished; refuses a directory that holds another one."""
    for name in (RUN, _IDENTITY):
        if (output / name).exists():
            found = files.read_json(output / name)
            differing = [key for key, value in identity.items() if found.get(key) != value]
            if differing:
                raise UserError(
                    f"{output} holds another run (its {', '.join(differing)} differ). "
                    "Choose another --output_path."
                )
            return name == RUN
    files.write_json(output / _IDENTITY, identity)
    return False


def _train(
    model: Any,
    tokenizer: Any,
    bundle: Bundle,
    protocol: Protocol,
    method_name: str,
    method_config: Config,
    seed: int,
    output: Path,
    base: Path,
    device_batch_size: int,
) -> int:
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    method = methods.METHODS[method_name]
    if method.prepare is not None:
        method.prepare(model, method_config)
    training = method.data(bundle, method_config)
    steps = schedule.total_steps(
        protocol, bundle.manifest["counts"]["known"] + bundle.manifest["counts"]["unknown"]
    )
    sequence = schedule.order(training, protocol, steps, seed)
    longest = getattr(model.config, "max_position_embeddings", None)
    examples = schedule.encode([*training.first, *training.repeated], tokenizer, longest)
    _set_dropout(model, protocol.dropout)
    curve = Curve(bundle, tokenizer, protocol, output)
    trainer = ForgettingTrainer(
        model=model,
        args=arguments(protocol, steps, seed, output / _RESUME, device_batch_size),
        train_dataset=schedule.Schedule(sequence, examples, protocol.batch_size),
        data_collator=partial(schedule.collate, pad=tokenizer.pad_token_id or 0),
        teacher=_teacher(method, method_config, training, protocol, base, output),
    )
    trainer.add_callback(CurveCallback(curve, protocol.evaluate_every))
    trainer.train(resume_from_checkpoint=_last_checkpoint(output / _RESUME, curve))
    curve.finish()
    return steps


def _teacher(
    method: methods.Method,
    config: Config,
    training: methods.TrainingData,
    protocol: Protocol,
    base: Path,
    output: Path,
) -> Teacher | None:
    from factual_forgetting.protocol.trainer import Teacher

    if not method.distils:
        return None
    assert isinstance(config, methods.SelfDistillation)  # noqa: S101
    if config.teacher == "base":
        return Teacher(config, base, from_step=0)
    return Teacher(config, output / _SNAPSHOT, schedule.first_steps(training, protocol))


def _set_dropout(model: Any, rate: float) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = rate


def _last_checkpoint(resume: Path, curve: Curve) -> str | None:
    """Finds the last whole checkpoint of an interrupted run, and cuts the curve back to it."""
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(str(resume)) if resume.is_dir() else None
    curve.forget_after(int(found.rsplit("-", 1)[1]) if found else -1)
    return found


def _save(model: Any, tokenizer: Any, dtype: str, output: Path) -> None:
    import torch

    model.to(getattr(torch, dtype)).save_pretrained(output)
    tokenizer.save_pretrained(output)
