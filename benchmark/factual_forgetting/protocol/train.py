"""Runs one training: protocol x method x bundle x seed -> checkpoint, run.json and curve."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting import __version__, checkpoint, files
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
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
_PARTIAL = "run.partial.json"
_RESUME = "resume"
_SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Run:
    """What decides a checkpoint.

    Attributes:
        bundle: The bundle to train on; it names the base.
        protocol: The recipe.
        method: Key of `methods.METHODS`.
        settings: The method's validated settings.
        seed: Decides the order of the facts.
    """

    bundle: Bundle
    protocol: Protocol
    method: str
    settings: Config
    seed: int

    def identity(self) -> dict[str, Any]:
        """Returns what distinguishes this run from every other."""
        return {
            "bundle_sha256": self.bundle.sha256,
            "base": self.bundle.manifest["base"],
            "method": {"name": self.method, "settings": self.settings.model_dump(mode="json")},
            "protocol": self.protocol.model_dump(mode="json"),
            "protocol_sha256": protocol_sha256(self.protocol),
            "seed": self.seed,
        }

    def steps(self) -> int:
        """Returns its optimizer steps: those of every method under this protocol and bundle."""
        size = sum(len(self.bundle.splits[name]) for name in (KNOWN, UNKNOWN))
        return schedule.total_steps(self.protocol, size)


def finetune(
    run: Run,
    output: Path,
    *,
    pretrained: str | None = None,
    device_batch_size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a run; one that is finished is returned as it is, an interrupted one resumes.

    Args:
        run: What to train.
        output: Its directory.
        pretrained: Where the base is, if not where the bundle's manifest says.
        device_batch_size: Facts in one forward pass on a device; accumulation makes up the
            protocol's batch. The whole batch by default.
        progress: Whether to draw a progress bar.

    Returns:
        The content of `run.json`.

    Raises:
        UserError: If the output holds another run, or the base isn't the bundle's.
    """
    base = _locate_base(run.bundle, pretrained)
    identity = run.identity()
    if _finished(output, identity):
        return dict(files.read_json(output / RUN))
    started = time.time()
    model, tokenizer = load_causal_lm(base, dtype="float32", attention=run.protocol.attention)
    batch = device_batch_size or run.protocol.batch_size
    _train(run, model, tokenizer, base, output, batch, progress)
    _save(model, tokenizer, run.protocol.checkpoint_dtype, output)
    content = {
        **identity,
        "steps": run.steps(),
        "weights_sha256": checkpoint.weights_sha256(output),
        "environment": environment(),
        "version": __version__,
    }
    for leftover in (_RESUME, _SNAPSHOT):
        shutil.rmtree(output / leftover, ignore_errors=True)
    files.write_json(output / LOG, {"seconds": time.time() - started})
    files.write_json(output / RUN, content)
    (output / _PARTIAL).unlink(missing_ok=True)
    return content


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


def _finished(output: Path, identity: dict[str, Any]) -> bool:
    """Tells whether the run is finished; refuses a directory that holds another one."""
    for name in (RUN, _PARTIAL):
        if (output / name).exists():
            found = files.read_json(output / name)
            differing = [key for key, value in identity.items() if found.get(key) != value]
            if differing:
                raise UserError(
                    f"{output} holds another run (its {', '.join(differing)} differ). "
                    "Choose another --output_path."
                )
            return name == RUN
    if (output / "config.json").exists():
        raise UserError(f"{output} holds a checkpoint already. Choose another --output_path.")
    files.write_json(output / _PARTIAL, identity)
    return False


def _train(
    run: Run,
    model: Any,
    tokenizer: Any,
    base: Path,
    output: Path,
    device_batch_size: int,
    progress: bool,
) -> None:
    from factual_forgetting.protocol.trainer import CurveCallback, ForgettingTrainer, arguments

    method, protocol = methods.METHODS[run.method], run.protocol
    if method.prepare is not None:
        method.prepare(model, run.settings)
    training = method.data(run.bundle, run.settings)
    longest = getattr(model.config, "max_position_embeddings", None)
    examples = schedule.encode([*training.first, *training.repeated], tokenizer, longest)
    sequence = schedule.order(training, protocol, run.steps(), run.seed)
    _set_dropout(model, protocol.dropout)
    curve = Curve(run.bundle, tokenizer, protocol, output)
    resumed = _last_checkpoint(output / _RESUME, curve)
    trainer = ForgettingTrainer(
        model=model,
        args=arguments(protocol, run.steps(), run.seed, output / _RESUME, device_batch_size),
        train_dataset=schedule.Schedule(sequence, examples, protocol.batch_size),
        data_collator=partial(schedule.collate, pad=tokenizer.pad_token_id or 0),
        teacher=_teacher(run, training, base, output),
    )
    trainer.add_callback(CurveCallback(curve, protocol.evaluate_every, progress=progress))
    trainer.train(resume_from_checkpoint=resumed)
    curve.finish()


def _teacher(run: Run, training: methods.TrainingData, base: Path, output: Path) -> Teacher | None:
    from factual_forgetting.protocol.trainer import Teacher

    if not isinstance(run.settings, methods.SelfDistillation):
        return None
    if run.settings.teacher == "base":
        return Teacher(run.settings, base, from_step=0)
    return Teacher(run.settings, output / _SNAPSHOT, schedule.first_steps(training, run.protocol))


def _set_dropout(model: Any, rate: float) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        if hasattr(module, "attention_dropout"):
            vars(module)["attention_dropout"] = rate


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
