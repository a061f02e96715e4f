"""`python -m bench.memory MODULE ENTRY SHAPE...`: what one step adds to the peak resident set of its process."""

import subprocess
import sys
from importlib import import_module


def peak_bytes(module: str, entry: str, shape: tuple[int, ...]) -> int:
    """Bytes by which a step of `entry` raises the peak, inputs being there and all code having run on a small shape."""
    command = [sys.executable, "-m", "bench.memory", module, entry, *map(str, shape)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print it for a bench module's `step`, `inputs` and `LOSSES`."""
    name, entry, *numbers = sys.argv[1:]
    module, shape = import_module(f"bench.{name}"), tuple(map(int, numbers))
    loss = module.LOSSES[entry]
    module.step(loss, *module.inputs(*shape[:-1], 1000))
    tensors = module.inputs(*shape)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again at what is resident now
    before = _peak()
    module.step(loss, *tensors)
    print(_peak() - before)


def _peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
