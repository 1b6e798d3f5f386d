"""What users are told where nothing else of the scoring's tests tells it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factual_forgetting import ForgettingCallback, files
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.engines.tree import UnsupportedModelError
from factual_forgetting.errors import InputError
from factual_forgetting.protocol.curve import CURVE, OUTCOMES
from factual_forgetting.scoring import anatomy, frontier, results
from factual_forgetting.scoring import callback as callbacks
from factual_forgetting.scoring.report import LOST, Transition
from factual_forgetting.scoring.styles import CHAT, STYLES
from factual_forgetting.scoring.watch import Watch


def test_a_model_that_anatomy_cannot_ask(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise UnsupportedModelError("it has no cache")

    monkeypatch.setattr(anatomy, "_scored_checkpoint", lambda report: tmp_path)
    monkeypatch.setattr(anatomy, "load_causal_lm", lambda path, device: (None, None))
    monkeypatch.setattr(anatomy, "PrefixEngine", refuse)
    report: Any = SimpleNamespace(
        transitions=[Transition(HELDOUT, bundle.splits[HELDOUT][0], LOST, "")]
    )
    with pytest.raises(InputError, match=r"--anatomy can't ask .*: it has no cache\. Leave it out"):
        anatomy.anatomy(bundle, report)


def test_a_bundle_too_small_for_anatomy(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"0 facts of nothing.*--anatomy needs a larger bundle"):
        next(anatomy._configurations(bundle, "nothing"))


def test_an_adapter_that_is_sharded(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    plugin = SimpleNamespace(fsdp_version=2)
    state = SimpleNamespace(distributed_type=callbacks.DistributedType.FSDP, fsdp_plugin=plugin)
    monkeypatch.setattr(callbacks, "AcceleratorState", lambda: state)
    model = SimpleNamespace(can_generate=lambda: True, disable_adapter=None)
    trainer: Any = SimpleNamespace(model=model, processing_class=tokenizer)
    with pytest.raises(InputError, match=r"FSDP shards the adapter\. Leave it out"):
        ForgettingCallback(trainer, [], adapter_off=True)


def test_a_run_on_another_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontier, "told_by_run", lambda path: {"bundle_sha256": "0" * 64})
    with pytest.raises(InputError, match=r"on another bundle than .*\. Give --bundle"):
        frontier.find_runs([tmp_path], bundle)


def test_a_chat_without_its_template() -> None:
    with pytest.raises(InputError, match=r"Score again with --apply_chat_template"):
        results._check_settings(Path("r.json"), {"config": {"model": "hf"}}, STYLES[CHAT])


def test_a_prompt_that_is_half_of_one() -> None:
    sent = {"arg_0": '[{"role": "user"}]', "arg_1": {}}
    row = {"doc": {"id": "a"}, "resps": [["b"]], "arguments": {"gen_args_0": sent}}
    with pytest.raises(InputError, match=r"line 1: not a sample of lm-eval\. Score again"):
        results._Sample.parse(row, "line 1")


def test_a_training_that_goes_on_with_other_facts(bundle: Bundle, tmp_path: Path) -> None:
    for name in (CURVE, OUTCOMES):
        files.write_jsonl(tmp_path / name, [])
    watch = Watch(bundle, None, tmp_path, None)
    with pytest.raises(InputError, match=r"Give those .* or train into another output_dir"):
        watch.resume(3)
