"""Starts the main command in several processes on this machine, which train one run together.

    python scripts/launch_local.py -n 2 -- --config=configs/digits_patch.py
    python scripts/launch_local.py -n 4 --devices-per-process 1 -- --config=configs/cifar_vit.py

What follows `--` goes to vit_jax.main. Where there are GPUs, each process has one of them. SIGTERM
and Ctrl-C stop them all, as they stop one.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # without an installation

from vit_jax.cli import command  # noqa: E402
from vit_jax.runtime.errors import UserError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    status = 0

    def launch_all():
        nonlocal status
        status = launch(argv)

    return command.run(launch_all) or status


def launch(argv: list[str] | None) -> int:
    """Runs the processes to their end and returns the first status that is not 0, if any."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("-n", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--devices-per-process", type=int, default=0, help="on a CPU; default: its share of cores"
    )
    parser.add_argument("arguments", nargs="*", help="of vit_jax.main, after --")
    options = parser.parse_args(argv)
    if options.n < 1 or options.devices_per_process < 0:
        raise UserError("-n and --devices-per-process take numbers above 0")
    arguments = [sys.executable, "-m", "vit_jax.main", *options.arguments]
    arguments.append("--config.sharding.distributed=True")
    if options.devices_per_process:
        arguments.append(f"--config.sharding.cpu_devices={options.devices_per_process}")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))  # a free port
        coordinator = f"127.0.0.1:{found.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(options.n)}
    processes = []
    for rank in map(str, range(options.n)):
        own = {"JAX_PROCESS_ID": rank, "JAX_LOCAL_DEVICE_IDS": rank}  # the latter of GPUs
        processes.append(subprocess.Popen(arguments, env=os.environ | shared | own))
    # One that is told tells the others; Ctrl-C comes to all from the terminal.
    signal.signal(signal.SIGTERM, lambda number, frame: processes[0].send_signal(number))
    signal.signal(signal.SIGINT, lambda number, frame: None)
    statuses = [process.wait() for process in processes]
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
