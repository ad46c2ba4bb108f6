"""One process of test_distributed.py: trains squares as `argus train` would, sharded or not, and says what it lost.

torchrun --nproc-per-node 2 tests/train/run_processes.py CONFIG.json [fsdp] [parted]

parted: then once more beside it, in a folder of that name, stopped after a step of the second stage and gone on with.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if "fsdp" in sys.argv:
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "ArgusVisionLayer,ArgusTextLayer",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }
    # accelerate offers FSDP where there are accelerators only; torch shards over gloo as well.
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    made_by_accelerate = AcceleratorState.__init__

    def made_for_cpus(self, *args, fsdp_plugin=None, **kwargs):
        made_by_accelerate(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = made_for_cpus

from tiny_runs import Squares

from argus_tools.train import readers
from argus_tools.train.config import parse_config
from argus_tools.train.run import run_config

if __name__ == "__main__":
    readers.READERS["squares"] = Squares
    config = parse_config(json.loads(Path(sys.argv[1]).read_text()))
    run_config(config, progress=False)
    if "parted" in sys.argv:
        parted = dataclasses.replace(config, output_dir=str(Path(config.output_dir).with_name("parted")))
        assert run_config(parted, minutes=1e-9, progress=False) is None
        checkpoint = Path(parted.output_dir) / "all" / "checkpoint-1"
        sharded = {file.parent.name for file in checkpoint.rglob("*.distcp")}
        assert checkpoint.is_dir() and sharded == (
            {"pytorch_model_fsdp_0", "optimizer_0"} if "fsdp" in sys.argv else set()
        )
        run_config(parted, progress=False)
