"""Reads lm-eval's output back: outcomes by fact, judged again from the answers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, Item
from factual_forgetting.errors import UserError
from factual_forgetting.modelargs import parse_model_args
from factual_forgetting.scoring.judging import Judgement, judge
from factual_forgetting.scoring.styles import STYLES, TASK, TASK_VERSION, Style, parse_task
from factual_forgetting.scoring.task import require_matcher

_SCORED = (KNOWN, UNKNOWN, HELDOUT)


@dataclass(frozen=True, slots=True)
class Results:
    """What a checkpoint answered.

    Attributes:
        path: The results file.
        style: Key of `STYLES`: how it was asked.
        pretrained: The checkpoint as lm-eval was given it; None for other backends.
        name: What to call the checkpoint.
        answers: Generated text by fact id.
        judgements: Outcome by fact id.
        correct: Whether right, by fact id, in D_Known, D_Unk and D_Held.
        weights_sha256: Hash of the weights that answered; None where lm-eval couldn't see them.
        tokenizer_sha256: Hash of their tokenizer, likewise.
        prompts_sha256: Hash of all prompts, as lm-eval sent them.
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
    descent_declared: bool
    environment: dict[str, Any]


def read_results(path: Path, bundle: Bundle, style: str = TASK) -> Results:
    """Reads the newest results of a checkpoint and judges every answer again.

    Args:
        path: A results file of lm-eval, or the directory of one checkpoint's.
        bundle: The bundle that they must have been made with.
        style: Key of `STYLES`: which prompts to read the answers to.

    Raises:
        UserError: If they were made with `--limit`, a cache, other settings or another version,
            without `--log_samples`, belong to another bundle or to several checkpoints, or
            don't cover exactly the facts of a split.
    """
    require_matcher(bundle)
    results_path, results = _newest(path, style)
    config = results.get("config", {})
    _check_settings(results_path, results, STYLES[style])
    found = [task for task in results["results"] if _has(task, style)]
    rows = {task: _rows(results_path, task) for task in found}
    _check_versions(results_path, results, found)
    items = {item.fact.id: item for _, item in bundle.items()}
    asked = [_Sample.parse(row, where) for task in found for row, where in rows[task]]
    for sample in asked:
        sample.check(items, bundle, style)
    _check_complete(results_path, found, rows, bundle)
    judgements = {
        sample.id: _judge(sample.text, items[sample.id], STYLES[style]) for sample in asked
    }
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = parse_model_args(arguments)
    scored = {item.fact.id for split in _SCORED for item in bundle.splits[split]}
    return Results(
        path=results_path,
        style=style,
        pretrained=arguments.get("pretrained"),
        name=str(arguments.get("pretrained") or arguments.get("model") or results_path.parent.name),
        answers={sample.id: sample.text for sample in asked},
        judgements=judgements,
        correct={key: found.correct for key, found in judgements.items() if key in scored},
        weights_sha256=_one_of(results_path, "weights_sha256", asked),
        tokenizer_sha256=_one_of(results_path, "tokenizer_sha256", asked),
        prompts_sha256=files.sha256_json(sorted((sample.id, sample.prompt) for sample in asked)),
        descent_declared=_descent_declared(results),
        environment=_environment(results),
    )


def find_results(paths: list[Path]) -> list[Path]:
    """Returns the directories or files of single checkpoints under some paths, in order."""
    found: list[Path] = []
    for path in paths:
        folders = {file.parent for file in path.rglob("results_*.json")} if path.is_dir() else None
        if folders is not None and not folders:
            raise _nothing(path)
        found += sorted(folders) if folders else [path]
    return found


def styles_in(path: Path) -> list[str]:
    """Returns the styles that a checkpoint's results hold, in the order of `STYLES`."""
    names = [parse_task(name) for file in _files(path) for name in _read(file)["results"]]
    found = {parsed[0] for parsed in names if parsed}
    return [style for style in STYLES if style in found]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.name)
    folders = sorted({str(file.parent) for file in found})
    if len(folders) > 1:
        raise UserError(
            f"{path} holds results of {len(folders)} checkpoints: {', '.join(folders[:5])}. "
            "Name one of them."
        )
    if not found:
        raise _nothing(path)
    return found


def _nothing(path: Path) -> UserError:
    return UserError(f"{path} holds no results_*.json of lm-eval. Score a checkpoint first.")


def _read(path: Path) -> dict[str, Any]:
    results = files.read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise UserError(f"{path} is no results file of lm-eval. Score again.")
    return results


def _newest(path: Path, style: str) -> tuple[Path, dict[str, Any]]:
    for file in reversed(_files(path)):
        results = _read(file)
        if any(_has(task, style) for task in results["results"]):
            return file, results
    raise UserError(f"{path} holds no results of {style}. Score again with --tasks {style}.")


def _has(task: str, style: str) -> bool:
    parsed = parse_task(task)
    return parsed is not None and parsed[0] == style


def _check_settings(path: Path, results: dict[str, Any], style: Style) -> None:
    config = results.get("config", {})
    if config.get("limit") is not None:
        raise UserError(f"{path} was made with --limit. Score again without it.")
    if config.get("use_cache"):
        raise UserError(
            f"{path} was made with --use_cache, whose keys leave out the model: the answers may "
            "be another checkpoint's. Score again without it."
        )
    if style.chat and not results.get("chat_template") and "chat" not in str(config.get("model")):
        raise UserError(f"{path} lacks a chat template. Score again with --apply_chat_template.")


def _check_versions(path: Path, results: dict[str, Any], tasks: list[str]) -> None:
    versions = {parse_task(name): version for name, version in results["versions"].items()}
    for task in tasks:
        version = versions.get(parse_task(task))
        if version != TASK_VERSION:
            raise UserError(
                f"{path} was made with version {version} of {task}; this is {TASK_VERSION}. "
                "Score again, or read it with the version that made it."
            )


def _rows(results_path: Path, task: str) -> list[tuple[Any, str]]:
    stamp = results_path.stem.removeprefix("results_")
    samples = results_path.with_name(f"samples_{task}_{stamp}.jsonl")
    if not samples.exists():
        raise UserError(f"{samples} is missing. Score again with --log_samples.")
    return [
        (row, f"{samples}, line {number}")
        for number, row in enumerate(files.read_jsonl(samples), start=1)
    ]


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
        try:
            doc, text, sent = row["doc"], row["resps"][0][0], row["arguments"]["gen_args_0"]
            prompt, settings = sent["arg_0"], dict(sent["arg_1"])
            return cls(where, str(doc["id"]), doc, str(text), _as_text(prompt), settings)
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{where}: not a sample of lm-eval. Score again.") from None

    def check(self, items: dict[str, Item], bundle: Bundle, style_name: str) -> None:
        """Checks bundle, prompt and settings against what this package would have asked."""
        item, style = items.get(self.id), STYLES[style_name]
        if item is None or self.doc.get("bundle_sha256") != bundle.sha256:
            raise UserError(f"{self.where}: made with another bundle than {bundle.path}.")
        prompt = style.prompt(item, bundle)
        asked = prompt in self.prompt if style.chat else prompt == self.prompt
        if not asked or not self._canonical(style):
            raise UserError(
                f"{self.where}: asked with another prompt or other generation settings than the "
                "task's. Score again without --gen_kwargs, and with --apply_chat_template for "
                "the chat tasks alone."
            )

    def _canonical(self, style: Style) -> bool:
        greedy = not self.settings.get("do_sample") and not self.settings.get("temperature")
        stops = self.settings.get("until") == list(style.stops)
        return greedy and stops and self.settings.get("max_gen_toks") == style.max_new_tokens


def _as_text(prompt: Any) -> str:
    """The prompt as text; chat servers get their messages as JSON, alone in a list."""
    text = str(prompt[0] if isinstance(prompt, list) else prompt)
    if text.startswith("[{"):
        return "\n".join(str(message["content"]) for message in files.loads(text))
    return text


def _check_complete(
    path: Path, tasks: list[str], rows: dict[str, list[tuple[Any, str]]], bundle: Bundle
) -> None:
    for task in tasks:
        parsed = parse_task(task)
        expected = [item.fact.id for item in bundle.splits[parsed[1]]] if parsed else []
        found = [row["doc"]["id"] for row, _ in rows[task]]
        if sorted(found) != sorted(expected):
            raise UserError(
                f"The samples of {task} beside {path} hold {len(found)} answers where the bundle "
                f"has {len(expected)} facts. They are half-written or of another bundle; "
                "score again."
            )


def _judge(text: str, item: Item, style: Style) -> Judgement:
    fact = item.fact
    return judge(text, fact.answers, fact.aliases, fact.subject, chat=style.chat)


def _one_of(path: Path, key: str, asked: list[_Sample]) -> str | None:
    found = {sample.doc.get(key) for sample in asked}
    if len(found) > 1:
        raise UserError(f"The samples beside {path} differ in {key}: mixed runs. Score again.")
    value = next(iter(found), None)
    return str(value) if value else None


def _descent_declared(results: dict[str, Any]) -> bool:
    configs = results.get("configs", {}).values()
    return any((config.get("metadata") or {}).get("ff_descends") for config in configs)


def _environment(results: dict[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    return {
        "lm_eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
        "model": config.get("model"),
        "dtype": str(config.get("model_dtype")) if config.get("model_dtype") else None,
        "batch_size": str(config.get("batch_size")),
        "device": config.get("device"),
    }
