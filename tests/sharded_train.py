"""`python sharded_train.py FILE`: the `train` of the command line, FSDP on processes without a GPU.

accelerate offers FSDP where there are several GPUs alone; torch's, which it calls, runs on gloo too. So
accelerate is told that these processes are of that kind; all else is as on GPUs.
"""

import sys

import accelerate
from accelerate import PartialState
from accelerate.utils import DistributedType

from infu.cli import main
from infu.training import engine


def make_sharded(**options) -> accelerate.Accelerator:
    plugin = options.pop("fsdp_plugin")
    made = accelerate.Accelerator(**options)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    made.state.distributed_type, made.state.fsdp_plugin = DistributedType.FSDP, plugin
    return made


engine.Accelerator = make_sharded
sys.argv[1:1] = ["train"]
main()
