"""Train one run in several processes on this machine.

    vit-jax launch -n 2 -- --config=configs/digits_patch.py
    vit-jax launch -n 4 --devices-per-process 1 -- --config=configs/cifar_vit.py

The arguments after `--` are those of `vit-jax train`. With GPUs, each process uses one GPU.
SIGTERM and Ctrl-C stop all processes.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError


@command.main
def main(argv: Sequence[str]) -> int:
    """Run the processes and return the first exit status other than 0, if any."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("-n", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--devices-per-process",
        type=int,
        default=0,
        help="CPU devices of each process; default: the cores divided by the processes",
    )
    parser.add_argument("arguments", nargs="*", help="arguments of `vit-jax train`, after --")
    own = argv[: argv.index("--")] if "--" in argv else argv
    if any(one.startswith("--config") for one in own):
        raise UserError(
            "arguments of vit-jax train follow --: vit-jax launch -n 2 -- --config=FILE"
        )
    options = parser.parse_args(argv)
    if options.n < 1 or options.devices_per_process < 0:
        raise UserError("-n must be at least 1, and --devices-per-process at least 0")
    arguments = [sys.executable, "-m", "vit_jax.main", *options.arguments]
    arguments.append("--config.sharding.distributed=True")
    if options.devices_per_process:
        arguments.append(f"--config.sharding.cpu_devices={options.devices_per_process}")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # a free port
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(options.n)}
    processes = []
    for rank in map(str, range(options.n)):
        own = {"JAX_PROCESS_ID": rank, "JAX_LOCAL_DEVICE_IDS": rank}  # the latter for GPUs
        processes.append(subprocess.Popen(arguments, env=os.environ | shared | own))
    # SIGTERM to one process stops all of them; the terminal sends Ctrl-C to all.
    signal.signal(signal.SIGTERM, lambda number, frame: processes[0].send_signal(number))
    signal.signal(signal.SIGINT, lambda number, frame: None)
    statuses = [process.wait() for process in processes]
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)
