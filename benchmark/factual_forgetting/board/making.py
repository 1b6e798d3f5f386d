"""Makes records of results and runs: what was trained, what it answered, who declares what."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from factual_forgetting import checkpoint, files
from factual_forgetting.board import form
from factual_forgetting.board.form import Record
from factual_forgetting.board.record import (
    Outcome,
    load_record,
    recompute,
    track_of,
)
from factual_forgetting.bundle.manifest import KNOWN, UNKNOWN, Bundle
from factual_forgetting.config import Config, Told, parse
from factual_forgetting.environment import environment
from factual_forgetting.errors import InputError, NotFoundError, UserError
from factual_forgetting.protocol import grid
from factual_forgetting.protocol.curve import (
    METRIC_OF_SPLIT,
    OUTCOMES,
    read_curve,
    read_outcomes,
)
from factual_forgetting.protocol.recipe import require_own_name
from factual_forgetting.protocol.run import CHOSEN, LOG, read_chosen, told_by_run
from factual_forgetting.protocol.settings import resolve
from factual_forgetting.scoring.report import in_order, steps_of
from factual_forgetting.scoring.results import Results, read_results
from factual_forgetting.scoring.styles import TASK
from factual_forgetting.scoring.task import local_checkpoint, tokenizer_sha256
from factual_forgetting.slick.labelling import ZERO_SHOT


class Declared(Config):
    """What no file says and a submitter declares.

    Attributes:
        submitter: Who that is.
        method: How a checkpoint was made that finetune didn't make.
        method_args: Its settings.
        trained: Whether it trained on D_train, if no run says it.
        seed: Its seed.
        trials: Settings tried before these were chosen.
        repository: Where on the Hub the weights are.
        url: Where the method is told.
        training_data: What it was trained on.
        heldout: Whether facts of D_Held were among it.
        note: Anything else.
    """

    submitter: form.Submitter
    method: str | None = None
    method_args: dict[str, Any] | None = None
    trained: bool | None = None
    seed: int | None = None
    trials: int | None = None
    repository: str | None = None
    url: str | None = None
    training_data: str | None = None
    heldout: str | None = None
    note: str | None = None


class _Log(Told):
    """What is read of the log of a run."""

    seconds: Annotated[float, Field(ge=0)] | None


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run's directory says."""

    told: dict[str, Any]
    curve: list[dict[str, Any]]
    correct: dict[str, str]  # Outcomes along the curve, by fact id.
    seconds: float | None  # How long training took.
    trials: int | None  # Those of the sweep that chose it.
    tokenizer_sha256: str | None


def record_curve(sources: Sequence[Path], bundle: Bundle, root: Path, declared: Declared) -> Path:
    """Writes one record of the checkpoints of one run of any trainer; tells its path.

    The last one is the result. Their curve begins with the base, as its bundle knows it.

    Args:
        sources: Results of lm-eval, one a checkpoint; their order is that of the numbers that the
            checkpoints' names end in, or the given one.
        bundle: The bundle.
        root: Directory of records.
        declared: What the sources don't say.

    Raises:
        UserError: If there are fewer than two, or any can't be recorded by itself.
    """
    told = of_curve(declared, len(sources))
    found = [read_results(source, bundle) for source in sources]
    if any(one.pretrained and told_by_run(Path(one.pretrained)) for one in found):
        raise InputError("A run of finetune has a curve of its own. Leave out --curve.")
    for one in found:
        _require_all(one.path, one, bundle)
    ordered = in_order(found, declared=True) or found
    return make_record(ordered[-1].path, bundle, root, told, ordered)


def of_curve(declared: Declared, points: int) -> Declared:
    """Returns what is declared of a curve's last checkpoint, which trained on D_train.

    Raises:
        UserError: If there are fewer than two checkpoints, or they are said never to have trained.
    """
    if points < 2 or declared.trained is False:
        raise InputError(
            "A curve is of two or more checkpoints of a run that trained on D_train. Leave out "
            "--curve, or give all of them and leave out --no-trained."
        )
    return declared.model_copy(update={"trained": True})


def make_record(
    source: Path,
    bundle: Bundle,
    root: Path,
    declared: Declared,
    points: Sequence[Results] = (),
    style: str = TASK,
) -> Path:
    """Writes a record of an lm-eval output or a run directory with its outcomes; tells its path.

    Others may write records under the same root at the same time: every result has a path of
    its own, and the record appears only after its outcomes are whole. A result that is recorded
    there already keeps its date.

    Args:
        source: A run directory, or a results file or directory of lm-eval. Where the scored
            checkpoint is a run, its provenance and curve go into the record.
        bundle: The bundle.
        root: Directory of records.
        declared: What the source doesn't say.
        points: Checkpoints of its training in order, itself the last, where no run tells them.
        style: Key of `STYLES`: how it was asked. A curve is of the protocol's prompt alone.

    Raises:
        UserError: If the source is unfinished, of another bundle, or made nobody says how.
    """
    run, results = _read_source(source, bundle, style)
    _require_agreement(source, run, results, declared)
    _require_all(source, results, bundle)
    curve, along = ([], {}) if style != TASK else _curve_of(run, points, bundle)
    outcomes = _outcomes(along, results, bundle)
    rows = [outcome.model_dump() for outcome in outcomes]
    asked: dict[str, Any] = {"style": style, "trained": bool(run or declared.trained)}
    record = _identity(run, results, bundle, declared, rows, asked)
    trials = _trials(run, record, declared.trials)
    record |= {
        "format": form.RECORD_FORM,
        "base": {key: bundle.manifest["base"].get(key) for key in form.BaseOf.model_fields},
        "resolved_protocol": run.told["protocol"] if run else None,
        "track": track_of(record["protocol"], record["method"], trials),
        "trials": trials,
        "repository": declared.repository,
        "url": declared.url,
        "metrics": recompute(bundle, outcomes, len(curve), **asked),
        "curve": [{key: point[key] for key in form.CurvePoint.model_fields} for point in curve],
        "cost": _cost(run, bundle) if run else {},
        "environment": _environment(run, results),
        "origin": _origin(run, results, bundle),
        "training_data": _training_data(run, declared),
        "note": declared.note,
        "recorded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    content = parse(Record, record, "record").model_dump(mode="json")
    path = root / form.place(content)
    files.write_jsonl(path.with_name(content["outcomes"]["file"]), rows)
    with suppress(UserError):  # It wasn't recorded before, or the record is broken.
        content["recorded"] = load_record(path)[0].recorded
    files.write_json(path, content)
    return path


def require_declared(path: Path, bundle: Bundle, declared: Declared) -> None:
    """Raises a UserError where a record of a checkpoint would lack what nobody says of it."""
    _require_agreement(path, _read_run(path, bundle), None, declared)


def _require_agreement(
    source: Path, run: _Run | None, results: Results | None, declared: Declared
) -> None:
    """Refuses a declaration that the run contradicts, and asks for what no run tells."""
    if run is None:
        named = results.pretrained if results else None
        told = f"{source} is no run of finetune."
        if named and not Path(named).exists():
            told = f"The checkpoint {named} of {source} isn't there from here: no run tells of it."
        if declared.method is None:
            raise InputError(f"{told} Say how it was made with --method NAME.")
        if declared.trained is None:
            raise InputError(f"{told} Say whether it trained on D_train: --trained, --no-trained.")
        return
    method = run.told["method"]
    known = {"method": method["name"], "method_args": method["settings"], "trained": True}
    for name, value in {**known, "seed": run.told["seed"]}.items():
        if getattr(declared, name) not in (None, value):
            raise InputError(f"The {name} of the run in {source} is {value}. Leave out --{name}.")


def _require_all(source: Path, results: Results | None, bundle: Bundle) -> None:
    asked = results.correct if results else None
    for name in METRIC_OF_SPLIT:
        if asked is not None and any(item.fact.id not in asked for item in bundle.splits[name]):
            raise InputError(
                f"{source} holds no answers to the facts of {name}. A record needs those of all "
                "splits: score the checkpoint again, with all tasks."
            )


def _read_source(source: Path, bundle: Bundle, style: str) -> tuple[_Run | None, Results | None]:
    if run := _read_run(source, bundle):
        if style != TASK:
            raise InputError(f"{source} is a run, which isn't asked so. Record a score of it.")
        return run, None
    results = read_results(source, bundle, style)
    run = _read_run(Path(results.pretrained), bundle) if results.pretrained else None
    if run and results.weights_sha256 not in (None, run.told["weights_sha256"]):
        where = results.pretrained
        raise InputError(f"{source} is of other weights than {where} holds now. Score it again.")
    return run, results


def _read_run(path: Path, bundle: Bundle) -> _Run | None:
    if (run := told_by_run(path)) is None:
        return None
    if run["bundle_sha256"] != bundle.sha256:
        raise InputError(f"{path} was trained on another bundle than {bundle.path}. Give --bundle.")
    if run.get("foreign_base"):
        raise InputError(
            f"{path} was trained from another base than the bundle's, so its stability says "
            "nothing about forgetting. Build a bundle for that base, and train again."
        )
    if run["protocol"]:
        require_own_name(run["protocol"]["name"], run["protocol_sha256"])
    run["weights_sha256"] = _weights(path, run)
    curve = read_curve(path)
    correct = read_outcomes(path, len(curve))
    expected = {item.fact.id for name in METRIC_OF_SPLIT for item in bundle.splits[name]}
    if not expected <= set(correct):
        raise InputError(f"{path / OUTCOMES} doesn't fit the bundle or the curve. Train again.")
    log = files.read_object(path / LOG) if (path / LOG).is_file() else {"seconds": None}
    seconds = parse(_Log, log, str(path / LOG)).seconds
    told = {key: correct[key] for key in expected}
    return _Run(run, curve, told, seconds, _swept(path), tokenizer_sha256(path))


def _swept(path: Path) -> int | None:
    """Counts the trials of the sweep that chose a run; None if the run is of no sweep."""
    home = path.resolve()
    output = home.parents[min(2, len(home.parents) - 1)]
    if not (output / CHOSEN).is_file():
        return None
    name = str(home.relative_to(output))
    for choice in read_chosen(output).values():
        if name in choice.runs:
            return choice.trials
    raise InputError(
        f"{path} is a trial that its sweep didn't choose. Record the runs that {output / CHOSEN} "
        "names."
    )


def _trials(run: _Run | None, record: Mapping[str, Any], declared: int | None) -> int | None:
    """Counts the trials before the choice; None where there was one to make and nobody says."""
    swept = run.trials if run else None
    if declared is not None and swept is not None and declared < swept:
        raise InputError(f"Its sweep tried {swept} settings. Declare no fewer with --trials.")
    told = declared or swept
    closed = track_of(record["protocol"], record["method"], told) == "closed"
    only = closed and grid.trial_count(record["protocol"], record["method"]["name"]) == 1
    return 1 if told is None and only else told


def _weights(path: Path, run: Mapping[str, Any]) -> str:
    """Hashes a run's weights. A trainer saves them after the callback that wrote the run."""
    told, found = run["weights_sha256"], checkpoint.weights_sha256(path)
    if told is None and (found == run.get("earlier_sha256") or not any(path.glob("*.safetensors"))):
        raise NotFoundError(
            f"{path} holds a curve, but not the weights that training ended with. Save them there "
            "with the trainer's save_model()."
        )
    if told not in (None, found):
        raise InputError(f"The weights in {path} were changed after training. Train again.")
    return found


def _identity(
    run: _Run | None,
    results: Results | None,
    bundle: Bundle,
    declared: Declared,
    rows: list[dict[str, Any]],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """What identifies a result, and what follows from that: its id and its file."""
    if run:
        made = {key: run.told[key] for key in ("weights_sha256", "method", "seed")}
        recipe, digest = run.told["protocol"], run.told["protocol_sha256"]
        made["protocol"] = {"name": recipe["name"], "sha256": digest} if recipe else None
    else:
        made = {
            "weights_sha256": results.weights_sha256 if results else None,
            "method": {"name": declared.method, "settings": declared.method_args or {}},
            "seed": declared.seed,
            "protocol": None,
        }
    packed = "".join(files.dumps(row) + "\n" for row in rows).encode()  # As `write_jsonl` does.
    outcomes = {"sha256": hashlib.sha256(packed).hexdigest(), "rows": len(rows)}
    record = {
        "bundle_sha256": bundle.sha256,
        "submitter": declared.submitter,
        "matcher_version": bundle.matcher,
        **asked,
        **made,
        "outcomes": outcomes,
    }
    record["id"] = form.record_id(record)
    outcomes["file"] = record["id"] + form.OUTCOMES_SUFFIX
    return record


def _curve_of(
    run: _Run | None, points: Sequence[Results], bundle: Bundle
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The points of a curve, the base's first, and the outcomes along it by fact."""
    if run:
        return run.curve, run.correct
    if not points:
        return [], {}
    curve = [{"step": step, "loss": None} for step in (0, *steps_of(points))]
    signs = {
        item.fact.id: "".join(
            "01"[right]
            for right in (item.base[ZERO_SHOT], *(one.correct[item.fact.id] for one in points))
        )
        for split in METRIC_OF_SPLIT
        for item in bundle.splits[split]
    }
    return curve, signs


def _outcomes(curves: Mapping[str, str], results: Results | None, bundle: Bundle) -> list[Outcome]:
    if results:
        final, answers = results.correct, results.answers
    else:
        final, answers = {key: text[-1] == "1" for key, text in curves.items()}, {}
    return [
        Outcome(
            id=item.fact.id,
            split=split,
            relation=item.fact.relation,
            final=final[item.fact.id],
            curve=curves.get(item.fact.id, ""),
            answer=answers.get(item.fact.id),
        )
        for split, item in bundle.items()
        if item.fact.id in final
    ]


def _cost(run: _Run, bundle: Bundle) -> dict[str, Any]:
    told, last = run.told, run.curve[-1]
    gpus = re.match(r"(\d+) x ", str(told["environment"].get("device")))
    hours = int(gpus[1]) * run.seconds / 3600 if gpus and run.seconds is not None else None
    return {
        "steps": told["steps"],
        "tokens": last.get("tokens"),
        "extra_tokens": last.get("teacher_tokens"),
        "extra_data": _extra_data(told["method"], bundle),
        "gpu_hours": None if hours is None else round(hours, 4),
    }


def _extra_data(method: Mapping[str, Any], bundle: Bundle) -> int | None:
    from factual_forgetting.protocol.methods import METHODS

    if method["name"] not in METHODS:  # A run of another version.
        return None
    data = METHODS[method["name"]].data(bundle, resolve(method["name"], method["settings"]))
    seen = {fact.id for facts in (data.repeated, data.first, data.last) for fact in facts}
    return len(seen - {item.fact.id for name in (KNOWN, UNKNOWN) for item in bundle.splits[name]})


def _environment(run: _Run | None, results: Results | None) -> dict[str, Any]:
    """Reports the run and the scoring; of neither known, the matcher that scored again."""
    if run:
        told, resolved = run.told, run.told.get("resolved", {})
        # Without a recipe the trainer's arguments say it.
        weights = resolved.get("dtype", {}).get("weights")
        protocol = told["protocol"] or {**resolved, "checkpoint_dtype": weights}
        made = {
            **told["environment"],
            "attention": resolved.get("attention") or protocol.get("attention"),
            "dtype": protocol["checkpoint_dtype"],
            "training_batch_size": str(protocol.get("batch_size") or "") or None,
        }
    else:
        here, name = environment(), "factual-forgetting"
        packages = {name: here["packages"][name]} if name in here["packages"] else {}
        made = {"packages": packages, "commit": here["commit"], "dirty": here["dirty"]}
    if results:
        scored = results.environment
        names = ("lm_eval", "transformers")
        versions = {name: scored[name] for name in names if scored.get(name)}
        made["packages"] = {**made["packages"], **versions}
        made["dtype"] = scored.get("dtype") or made.get("dtype")
        made["scoring_batch_size"] = scored.get("batch_size")
        made["device"] = made.get("device") or scored.get("device")
    return {key: made[key] for key in form.EnvironmentOf.model_fields if made.get(key) is not None}


def _origin(run: _Run | None, results: Results | None, bundle: Bundle) -> dict[str, Any]:
    base = bundle.manifest["base"]
    path = local_checkpoint(base["pretrained"], base.get("revision"))
    descent = "trained" if run else None
    if results and not run:
        seen = results.weights_sha256 is not None and base["shape"] is not None
        descent = "declared" if results.descent_declared else "checked" if seen else None
    asked = results or run
    return {
        "descent": descent,
        "tokenizer_sha256": asked.tokenizer_sha256 if asked else None,
        "base_tokenizer_sha256": tokenizer_sha256(path) if path else None,
    }


def _training_data(run: _Run | None, declared: Declared) -> dict[str, Any]:
    told_data = {"description": declared.training_data, "heldout": "unknown"}
    if run and run.told["protocol"] and declared.training_data is None:
        told = "the bundle's training splits, by finetune"
        told_data = {"description": told, "heldout": "excluded"}
    elif declared.heldout and declared.training_data is None and not run:
        raise InputError(
            "--heldout says whether D_Held was among the training data. Say with --training_data "
            "what that was."
        )
    told_data["heldout"] = declared.heldout or told_data["heldout"]
    return parse(form.TrainingDataOf, told_data, "training data").model_dump()
