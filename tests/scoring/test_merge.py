import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.engines import merging
from factual_forgetting.engines.merging import merge_adapter
from factual_forgetting.errors import UserError
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval
from small import adapter_on


def test_the_merged_checkpoint_computes_what_the_adapter_did(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    adapted = adapter_on(base, tmp_path / "adapter")
    import torch
    from transformers import AutoModelForCausalLM

    merged = merge_adapter({"pretrained": str(tmp_path / "adapter")}, tmp_path / "merged")
    assert merged is not None
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    both = {"pretrained": str(base), "peft": str(tmp_path / "adapter")}
    before = (merged / "model.safetensors").stat().st_mtime_ns
    assert merge_adapter(both, tmp_path / "merged") == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == before


def test_adapters_of_one_run_stay_beside_each_other(base: Path, tmp_path: Path) -> None:
    adapter_on(base, tmp_path / "run" / "checkpoint-10")
    shutil.copytree(tmp_path / "run" / "checkpoint-10", tmp_path / "run" / "checkpoint-20")
    shutil.copytree(tmp_path / "run" / "checkpoint-10", tmp_path / "other" / "checkpoint-10")
    first, second, other = (
        merge_adapter({"pretrained": str(tmp_path / name)}, tmp_path / "merged")
        for name in ("run/checkpoint-10", "run/checkpoint-20", "other/checkpoint-10")
    )
    assert first
    assert second
    assert other
    assert (first.name, second.name) == ("checkpoint-10", "checkpoint-20")
    assert first.parent == second.parent != other.parent
    # Trained on at the same place: the old merge isn't taken for the new adapter's.
    weights = load_file(tmp_path / "run" / "checkpoint-20" / "adapter_model.safetensors")
    doubled = {name: tensor * 2 for name, tensor in weights.items()}
    save_file(doubled, tmp_path / "run" / "checkpoint-20" / "adapter_model.safetensors")
    before = checkpoint.weights_sha256(second)
    assert (
        merge_adapter({"pretrained": str(tmp_path / "run/checkpoint-20")}, tmp_path / "merged")
        == second
    )
    assert checkpoint.weights_sha256(second) != before


def test_two_that_merge_one_adapter_make_one_merge(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_on(base, tmp_path / "adapter")
    inside, meeting = [], threading.Barrier(2)
    merge = merging._merge

    def together(*given: Any) -> None:
        """Merges as late as the other one, if that comes."""
        inside.append(given)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=2)
        merge(*given)

    monkeypatch.setattr(merging, "_merge", together)
    with ThreadPoolExecutor(2) as pool:
        told = {"pretrained": str(tmp_path / "adapter")}
        both = [pool.submit(merge_adapter, told, tmp_path / "merged") for _ in range(2)]
        first, second = (done.result() for done in both)
    assert first == second
    assert len(inside) == 1
    assert checkpoint.weights_sha256(first)


def test_an_adapter_is_scored_as_its_merge(bundle: Bundle, base: Path, tmp_path: Path) -> None:
    adapter_on(base, tmp_path / "adapter")
    written = run_lm_eval(bundle, "hf", str(tmp_path / "adapter"), tmp_path / "r", batch_size="16")
    merged = next((tmp_path / "r" / "merged").glob("*/adapter"))
    assert read_results(written, bundle).weights_sha256 == checkpoint.weights_sha256(merged)


def test_what_is_no_adapter(base: Path, tmp_path: Path) -> None:
    assert merge_adapter({"pretrained": str(base)}, tmp_path) is None
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        merge_adapter({"pretrained": str(base), "peft": str(base)}, tmp_path)
    adapter = shutil.copytree(base, tmp_path / "pickled")
    files.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        merge_adapter({"pretrained": str(adapter)}, tmp_path)
