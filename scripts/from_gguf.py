"""Makes a checkpoint in safetensors of a GGUF file, dequantised to fp32.

    python scripts/from_gguf.py DIRECTORY FILE OUTPUT

Needs the package gguf. transformers reads some tokenizers of such files otherwise than the model
was trained with (digits, for one): compare, or put the model's own tokenizer files into OUTPUT.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from factual_forgetting.errors import reason_of


def convert(directory: Path, file: str, output: Path) -> None:
    """Reads model and tokenizer of `file` in `directory`, and saves both in `output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, gguf_file=file)
    read = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # the copy is no quantised model any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("file", help="its name in the directory")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    try:
        convert(args.directory, args.file, args.output)
    except (ImportError, OSError, ValueError) as error:
        sys.stderr.write(f"from_gguf: {reason_of(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
