"""The command line where accelerate takes processes on a CPU for GPUs, and so shards by FSDP."""

import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from factual_forgetting.cli import main

original = PartialState.__init__


def start(self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = start  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
