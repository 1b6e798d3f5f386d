"""Reads lm-eval's output back: outcomes by fact, judged again from the answers themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.config import Told, parse
from factual_forgetting.errors import InputError, NotFoundError, UserError
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.scoring.judging import Judgement, judge
from factual_forgetting.scoring.reading import require_room, require_uncut, told_arguments
from factual_forgetting.scoring.styles import STYLES, TASK, TASK_VERSION, Style, parse_task
from factual_forgetting.scoring.task import local_checkpoint, require_matcher

_SCORED = (KNOWN, UNKNOWN, HELDOUT)


_Text = str | None


class _Arguments(Told):
    """What is read of the arguments of a model."""

    pretrained: _Text = None
    model: _Text = None
    tokenizer: _Text = None
    revision: _Text = None


class _Settings(Told):
    """What is read of the settings that lm-eval was run with."""

    model: _Text = None
    model_args: str | dict[str, Any] | None = None
    device: _Text = None


class _Task(Told):
    metadata: dict[str, Any] | None = None


class _ResultsTold(Told):
    """What is read of a results file of lm-eval."""

    results: dict[str, Any]
    versions: dict[str, Any] = Field(default_factory=dict)
    config: _Settings = _Settings()
    configs: dict[str, _Task] = Field(default_factory=dict)
    max_length: int | None = None
    system_instruction: _Text = None
    lm_eval_version: _Text = None
    transformers_version: _Text = None


class _Doc(Told):
    id: str
    bundle_sha256: _Text = None
    weights_sha256: _Text = None
    tokenizer_sha256: _Text = None


class _Sent(Told):
    arg_0: str | list[Any]
    arg_1: dict[str, Any]


class _Request(Told):
    gen_args_0: _Sent


_One = Annotated[list[str], Field(min_length=1, max_length=1)]


class _SampleTold(Told):
    """What is read of a line of lm-eval's samples; every answer is the only one."""

    doc: _Doc
    resps: Annotated[list[_One], Field(min_length=1, max_length=1)]
    arguments: _Request


@dataclass(frozen=True, slots=True)
class Results:
    """What a checkpoint answered.

    Attributes:
        style: Key of `STYLES`: how it was asked.
        pretrained: The checkpoint as lm-eval was given it, or where that is from here; None for
            other backends.
        answers: Generated text by fact id; `judgements` has the outcome of each.
        correct: Whether right, by fact id, in D_Known, D_Unk and D_Held.
        weights_sha256: Hash of the weights that answered; None where lm-eval couldn't see them.
        tokenizer_sha256: Hash of their tokenizer, likewise.
        prompts_sha256: Hash of all prompts, as lm-eval sent them.
        asked_with: Settings that may change what it reads or computes, its precision apart.
        descent_declared: Whether the check of descent was waived.
        environment: Versions and settings that lm-eval recorded.
    """

    path: Path
    style: str
    pretrained: str | None
    name: str
    answers: dict[str, str]
    judgements: dict[str, Judgement]
    correct: dict[str, bool]
    weights_sha256: str | None
    tokenizer_sha256: str | None
    prompts_sha256: str
    asked_with: dict[str, Any]
    descent_declared: bool
    environment: dict[str, Any]


def read_results(path: Path, bundle: Bundle, style: str = TASK) -> Results:
    """Reads the newest results of a checkpoint and judges every answer again.

    Args:
        path: A results file of lm-eval, or the directory of one checkpoint's.
        bundle: The bundle that they must have been made with.
        style: Key of `STYLES`: which prompts to read the answers to.

    Raises:
        UserError: If made with `--limit`, a cache, other settings, version or bundle, without
            `--log_samples`, by several checkpoints, or not for exactly the facts of a split.
    """
    require_matcher(bundle)
    results_path, results = _newest(path, style)
    config = results.get("config", {})
    _check_settings(results_path, results, STYLES[style])
    splits = _splits(results, style)
    _check_versions(results_path, results, splits)
    by_task = {task: _samples(results_path, task) for task in splits}
    items = {item.fact.id: item for _, item in bundle.items()}
    asked = [sample for samples in by_task.values() for sample in samples]
    for sample in asked:
        sample.check(items, bundle, STYLES[style])
    for task, samples in by_task.items():
        _check_complete(results_path, task, samples, bundle.splits[splits[task]])
    arguments = _arguments(config)
    require_uncut(arguments)
    weights = _one_of(results_path, "weights_sha256", asked)
    name, revision = _located(arguments, results_path, weights), arguments.get("revision")
    tokenizer = local_checkpoint(arguments.get("tokenizer") or name, revision)
    prompts = (sample.prompt for sample in asked)
    require_room(prompts, results.get("max_length"), STYLES[style].max_new_tokens, tokenizer)
    judgements = {
        s.id: judge(
            s.text,
            fact.answers,
            fact.aliases,
            fact.subject,
            chat=STYLES[style].chat,
            matcher=bundle.matcher,
        )
        for s in asked
        for fact in [items[s.id].fact]
    }
    scored = {item.fact.id for split in _SCORED for item in bundle.splits[split]}
    configs = results.get("configs", {}).values()
    return Results(
        path=results_path,
        style=style,
        pretrained=name,
        name=str(arguments.get("pretrained") or arguments.get("model") or results_path.parent.name),
        answers={sample.id: sample.text for sample in asked},
        judgements=judgements,
        correct={key: found.correct for key, found in judgements.items() if key in scored},
        weights_sha256=weights,
        tokenizer_sha256=_one_of(results_path, "tokenizer_sha256", asked),
        prompts_sha256=files.sha256_json(sorted((sample.id, sample.prompt) for sample in asked)),
        asked_with=told_arguments(arguments) | _instruction(results),
        descent_declared=any((c.get("metadata") or {}).get("ff_descends") for c in configs),
        environment=_environment(results),
    )


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("model_args") or {}
    arguments = parse_model_args(given) if isinstance(given, str) else dict(given)
    parse(_Arguments, arguments, "model_args of lm-eval")
    return arguments


def _located(arguments: Mapping[str, Any], results: Path, weights: str | None) -> str | None:
    """Finds a checkpoint that was named from another directory: one that the results lie under.

    Where several have that name, the weights tell which it is.
    """
    if (name := arguments.get("pretrained")) is None:
        return None
    places = [Path(name), *(parent / name for parent in results.resolve().parents)]
    there = [place for place in places if (place / "config.json").is_file()]
    if len({place.resolve() for place in there}) > 1 and weights:
        there = [place for place in there if _holds(place, weights)]
    return str(name) if not there or there[0] == places[0] else str(there[0])


def _holds(path: Path, weights: str) -> bool:
    with suppress(UserError):
        return checkpoint.weights_sha256(path) == weights
    return False


def _instruction(results: Mapping[str, Any]) -> dict[str, Any]:
    found = results.get("system_instruction")
    return {"system_instruction": found} if found else {}


def asked_sha256(results: Mapping[str, Any]) -> str:
    """Hashes what lm-eval asked: the model class and its arguments, but those of the machine."""
    config = results.get("config", {})
    arguments = checkpoint.without_machine(_arguments(config))
    return files.sha256_json([config.get("model"), arguments])


def find_results(paths: Sequence[Path]) -> list[Path]:
    """Returns the directories or files of single checkpoints under some paths, in order."""
    return [found for path in paths for found in (_folders(path) if path.is_dir() else [path])]


def _folders(path: Path) -> list[Path]:
    every = {file.relative_to(path) for file in path.rglob("results_*.json")}
    # What a killed command was about to write is no result.
    found = sorted({path / f.parent for f in every if f"{files.PARTIAL}/" not in str(f)})
    if not found:
        raise NotFoundError(f"{path} holds no results_*.json of lm-eval. Score a checkpoint first.")
    return found


def _newest(path: Path, style: str) -> tuple[Path, dict[str, Any]]:
    found = [path]
    if not path.is_file():
        folders = _folders(path)
        if len(folders) > 1:
            raise InputError(
                f"{path} holds results of {len(folders)} checkpoints: "
                f"{', '.join(map(str, folders[:5]))}. Name one of them."
            )
        found = sorted(folders[0].glob("results_*.json"), reverse=True)
    read = {file: _read(file) for file in found}
    if len(set(map(asked_sha256, read.values()))) > 1:
        raise InputError(
            f"{path} holds results of several checkpoints, or of one with other --model_args: "
            f"{', '.join(file.name for file in found[:5])}. Name one of these files."
        )
    for file, results in read.items():
        if _splits(results, style):
            return file, results
    raise NotFoundError(f"{path} holds no results of {style}. Score again with --tasks {style}.")


def _read(file: Path) -> dict[str, Any]:
    results = files.read_object(file)
    parse(_ResultsTold, results, f"{file} is no results file of lm-eval")
    return results


def _splits(results: dict[str, Any], style: str) -> dict[str, str]:
    """The split that each task of a style asks, by the name that lm-eval has for it."""
    parsed = {task: parse_task(task) for task in results["results"]}
    return {task: found[1] for task, found in parsed.items() if found and found[0] == style}


def _check_settings(path: Path, results: dict[str, Any], style: Style) -> None:
    config = results.get("config", {})
    if config.get("limit") is not None:
        raise InputError(f"{path} was made with --limit. Score again without it.")
    if config.get("use_cache"):
        raise InputError(
            f"{path} was made with --use_cache, whose keys leave out the model: the answers may "
            "be another checkpoint's. Score again without it."
        )
    if style.chat and not results.get("chat_template") and "chat" not in str(config.get("model")):
        raise InputError(f"{path} lacks a chat template. Score again with --apply_chat_template.")


def _check_versions(path: Path, results: dict[str, Any], tasks: Iterable[str]) -> None:
    versions = {parse_task(name): version for name, version in results.get("versions", {}).items()}
    for task in tasks:
        version = versions.get(parse_task(task))
        if version != TASK_VERSION:
            raise InputError(
                f"{path} was made with version {version} of {task}; this is {TASK_VERSION}. "
                "Score again, or read it with the version that made it."
            )


@dataclass(frozen=True, slots=True)
class _Sample:
    """A line of lm-eval's samples."""

    where: str
    id: str
    doc: dict[str, Any]
    text: str
    prompt: str
    settings: dict[str, Any]

    @classmethod
    def parse(cls, row: Any, where: str) -> _Sample:
        told = parse(_SampleTold, row, f"{where}: not a sample of lm-eval")
        sent, text = told.arguments.gen_args_0, told.resps[0][0]
        try:
            prompt = _as_text(sent.arg_0)
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(f"{where}: not a sample of lm-eval. Score again.") from None
        return cls(where, told.doc.id, row["doc"], text, prompt, sent.arg_1)

    def check(self, items: Mapping[str, Item], bundle: Bundle, style: Style) -> None:
        """Checks bundle, prompt and settings against what this package would have asked."""
        item = items.get(self.id)
        if item is None or self.doc.get("bundle_sha256") != bundle.sha256:
            raise InputError(f"{self.where}: made with another bundle than {bundle.path}.")
        prompt = style.prompt(item, bundle)
        asked = prompt in self.prompt if style.chat else prompt == self.prompt
        if not asked or not self._canonical(style):
            raise InputError(
                f"{self.where}: asked with another prompt or other generation settings than the "
                "task's. Score again without --gen_kwargs, and with --apply_chat_template for "
                "the chat tasks alone."
            )

    def _canonical(self, style: Style) -> bool:
        # Another key could change answers too: num_beams, repetition_penalty.
        others = {k: v for k, v in self.settings.items() if k not in ("do_sample", "temperature")}
        greedy = not self.settings.get("do_sample") and not self.settings.get("temperature")
        expected = {"until": list(style.stops), "max_gen_toks": style.max_new_tokens}
        return greedy and others == expected


def _samples(results_path: Path, task: str) -> list[_Sample]:
    stamp = results_path.stem.removeprefix("results_")
    path = results_path.with_name(f"samples_{task}_{stamp}.jsonl")
    if not path.exists():
        raise NotFoundError(f"{path} is missing. Score again with --log_samples.")
    rows = enumerate(files.read_jsonl(path), start=1)
    return [_Sample.parse(row, f"{path}, line {number}") for number, row in rows]


def _as_text(prompt: Any) -> str:
    """The prompt as text; chat servers get their messages as JSON, alone in a list."""
    text = str(prompt[0] if isinstance(prompt, list) else prompt)
    if text.startswith("[{"):
        return "\n".join(str(message["content"]) for message in files.loads(text))
    return text


def _check_complete(
    path: Path, task: str, samples: Sequence[_Sample], expected: Sequence[Item]
) -> None:
    if sorted(sample.id for sample in samples) != sorted(item.fact.id for item in expected):
        raise InputError(
            f"The samples of {task} beside {path} hold {len(samples)} answers where the bundle "
            f"has {len(expected)} facts. They are half-written or of another bundle; score again."
        )


def _one_of(path: Path, key: str, asked: Sequence[_Sample]) -> str | None:
    found = {sample.doc.get(key) for sample in asked}
    if len(found) > 1:
        raise InputError(f"The samples beside {path} differ in {key}: mixed runs. Score again.")
    value = next(iter(found), None)
    return str(value) if value else None


def _environment(results: dict[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    return {
        "lm_eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
        "model": config.get("model"),
        "dtype": str(config.get("model_dtype")) if config.get("model_dtype") else None,
        "batch_size": str(config["batch_size"]) if config.get("batch_size") else None,
        "device": config.get("device"),
    }
