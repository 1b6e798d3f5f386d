"""The Python interface: what it holds, how it is called, and what it raises."""

import inspect
from pathlib import Path

import pytest

import factual_forgetting

SIGNATURES = {
    "Bundle": "path, splits, exemplars, manifest",
    "BundleConfig": "known=8000, unknown=8000, heldout=2000, validation=500, replay=500, "
    "min_highly_known=0.3, other_relations=(), match_answers=False, seed=0",
    "Comparison": "summary, outcomes=<factory>",
    "Fact": "id, relation, subject, question, answers, split, aliases=(), popularity=None, "
    "domain=None",
    "ForgettingCallback": "trainer, facts, every=50, limit=200, full_every=None, stop_if=None, "
    "tokenizer=None, adapter_off=False, method='own'",
    "Protocol": "name, learning_rate, learning_rates, strengths, batch_size, epochs, "
    "warmup_steps, weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm, dropout, "
    "precision, teacher_precision='fp32', checkpoint_dtype, curve_buffers='cast', attention, "
    "evaluate_every, evaluate_sample, kl_sample, kl_prompt='zero_shot', max_new_tokens, "
    "settings=<factory>",
    "Run": "bundle, protocol, method, settings, seed, foreign_base=None",
    "Score": "bundle, report",
    "SlickConfig": "runs=20, shots=3, seed=0, max_new_tokens=16, exemplars='relation', "
    "retire=False, quota=<factory>, min_highly_known=0.3, samples=0, temperature=0.5, top_k=40, "
    "shard_size=512",
    "build_bundle": "labels, config, output",
    "classify": "facts, engine, settings, base, output",
    "compare": "base, checkpoints, facts=None, style='few_shot', runs=5, shots=3, seed=0, "
    "quick=False, model='hf', model_args='', engine='auto', batch_size='auto', device=None, "
    "output_path=None",
    "finetune": "run, output, pretrained=None, adapter=None, execution=None, progress=True",
    "load_bundle": "path",
    "load_facts": "source, relations=(), options",
    "load_labels": "path",
    "load_protocol": "name",
    "score": "checkpoint, bundle='almanac', tasks='factual_forgetting', model='hf', "
    "output_path=None, batch_size=128, device=None, trained=None, descends=False",
}
ERRORS = {
    "UserError": Exception,
    "InputError": ValueError,
    "NotFoundError": FileNotFoundError,
    "PackageError": ImportError,
}


def told(name: str) -> str:
    parameters = inspect.signature(getattr(factual_forgetting, name)).parameters.values()
    return ", ".join(
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}"
        for p in parameters
    )


def test_the_interface_is_what_is_listed() -> None:
    assert {*SIGNATURES, *ERRORS, "__version__"} == set(factual_forgetting.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay(name: str) -> None:
    assert told(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_a_user_error_and_the_standard_one_of_its_kind(name: str) -> None:
    error = getattr(factual_forgetting, name)
    assert issubclass(error, factual_forgetting.UserError)
    assert issubclass(error, ERRORS[name])
    assert str(error("cause and way out")) == "cause and way out"


def test_a_notebook_can_catch_the_standard_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no bundle"):
        factual_forgetting.load_bundle(tmp_path)
    with pytest.raises(ValueError, match="Unknown protocol"):
        factual_forgetting.load_protocol("no-such-protocol")


def test_an_unknown_part_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_part"):
        factual_forgetting.no_such_part  # noqa: B018
