"""`make cuda-check`: what nvcc makes of the kernels, against limits.json beside this file. It needs no GPU.

Compiles every csrc/cuda/*.cu for each architecture, prints ptxas' report of every kernel as it is, and fails on: a
stack or spills; more registers or fewer blocks per multiprocessor than the limits say; an instruction that the limits
ask for and the machine code lacks; a kernel without limits, limits without a kernel. What was compiled before is
remembered under build/cuda-check by the contents of all that went into it. All of this is instruction mix and
occupancy: it says nothing of time.

Of each kernel the limits hold `shared_bytes` (of dynamic shared memory, written by hand where a launch asks for more
than 1 KiB), `instructions` (that every architecture's code must have) and for each architecture `registers` and
`blocks_per_sm`. `--update` writes registers and blocks, and of new kernels the instructions: it takes none away.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", f"-I{ROOT / 'csrc'}")  # as CMake's Release build
SHARED_BYTES_OF_SM = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
INSTRUCTIONS = {
    "HMMA": re.compile(r"HMMA\b"),  # matrix product of floats
    "IMMA": re.compile(r"IMMA\b"),  # of integers
    "LDSM": re.compile(r"LDSM\b"),  # ldmatrix
    "LDGSTS": re.compile(r"LDGSTS\b"),  # cp.async
    "LDG.128": re.compile(r"LDG\.(?:\w+\.)*128\b"),  # 16 bytes of global memory at once
    "STL": re.compile(r"STL\b"),  # stack
    "LDL": re.compile(r"LDL\b"),
}
STACK = ("STL", "LDL")


class CheckError(Exception):
    """The check cannot be made."""


@dataclass(frozen=True)
class Kernel:
    """What was compiled for one architecture."""

    registers: int
    threads: int  # of a block, by __launch_bounds__; 0: no bounds
    stack_bytes: int  # frame and spills
    instructions: dict[str, int]  # how many of each of INSTRUCTIONS


@dataclass(frozen=True)
class Compiled:
    """One source, one architecture."""

    source: str
    architecture: str
    report: str  # what nvcc and ptxas say
    kernels: dict[str, Kernel]
    failed: bool = False


def blocks_per_sm(architecture: str, registers: int, threads: int, shared_bytes: int) -> int:
    """How many blocks a multiprocessor holds at once: the rules of cuda_occupancy.h for these architectures."""
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // 4 // registers_of_warp * 4 // warps  # warps lie in four partitions
    shared_of_block = -(-(shared_bytes + 1024) // 128) * 128  # 1 KiB is the system's
    by_shared = SHARED_BYTES_OF_SM[architecture] // shared_of_block
    return min(32, 64 // warps, by_registers, by_shared)


def compile_kernels(source: Path, architecture: str, nvcc: str, cache: Path) -> Compiled:
    """The facts of one source, from the cache if nothing that they depend on has changed."""
    command = [nvcc, *FLAGS, f"-arch={architecture}", "-cubin", "-Xptxas=-v"]
    entry = cache / f"{key_of(source, command)}.json"
    if entry.exists():
        kept = json.loads(entry.read_text())
        return Compiled(**kept | {"kernels": {name: Kernel(**facts) for name, facts in kept["kernels"].items()}})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        run = subprocess.run([*command, "-o", cubin, source], capture_output=True, text=True, check=False)
        report = run.stdout + run.stderr
        if run.returncode:
            return Compiled(source.name, architecture, report, {}, failed=True)
        compiled = Compiled(source.name, architecture, report, kernels_of(report, cubin))
    cache.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(compiled)))
    temporary.rename(entry)
    return compiled


@functools.cache
def version_of(nvcc: str) -> bytes:
    """What the compiler says of itself."""
    return subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout


def key_of(source: Path, command: list[str]) -> str:
    """A checksum of the command, the compiler, this program, and every file of ours that the source includes."""
    checksum = hashlib.sha256(repr(command).encode() + version_of(command[0]) + Path(__file__).read_bytes())
    pending, seen = [source.resolve()], set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_bytes()
        checksum.update(b"%d %d " % (len(path.name), len(text)) + path.name.encode() + text)
        for name in re.findall(rb'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            beside = (folder / os.fsdecode(name) for folder in (path.parent, ROOT / "csrc"))
            pending += [file.resolve() for file in beside if file.is_file()][:1]
    return checksum.hexdigest()[:32]


def kernels_of(report: str, cubin: Path) -> dict[str, Kernel]:
    """Facts by kernel's name: registers and stack from ptxas' report, the rest from the machine code."""
    elf, sass = cuobjdump("-elf", cubin), cuobjdump("-sass", cubin)
    entries = re.findall(r"Compiling entry function '(\w+)'", report)
    names = subprocess.run(["c++filt", "-p", *entries], capture_output=True, text=True, check=True).stdout.split("\n")
    threads = dict(re.findall(r"^\.nv\.info\.(\w+)\n(?:(?!^\.).*\n)*?.*EIATTR_MAX_THREADS\n.*\n.*?(0x\w+)", elf, re.M))
    code = dict(re.findall(r"^\s*Function : (\w+)\n((?:(?!\s*Function : ).*\n)*)", sass, re.M))
    kernels = {}
    for entry, name in zip(entries, names, strict=False):
        properties = re.search(rf"Function properties for {entry}\n(.*)\n.*Used (\d+) registers", report)
        if properties is None or entry not in code:
            raise CheckError(f"{entry}: expected a report of ptxas and machine code, found no such thing")
        opcodes = re.findall(r"^\s+/\*\w{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code[entry], re.M)
        counts = {kind: sum(bool(form.match(code)) for code in opcodes) for kind, form in INSTRUCTIONS.items()}
        stack = sum(map(int, re.findall(r"(\d+) bytes", properties[1])))
        plain = name.replace("(anonymous namespace)::", "")
        if plain in kernels:
            raise CheckError(f"{plain}: expected one kernel of this name in a source, got two")
        kernels[plain] = Kernel(int(properties[2]), int(threads.get(entry, "0"), 16), stack, counts)
    return kernels


def cuobjdump(what: str, cubin: Path) -> str:
    """Output of NVIDIA's cuobjdump, which pip installs beside the nvdisasm that it calls."""
    try:
        tools = {
            path.name: Path(str(path.locate()))
            for package in ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm")
            for path in files(package) or []
        }
    except PackageNotFoundError as error:
        raise CheckError(f"{error.name}: not installed; pip install -e '.[dev]'") from None
    path = os.pathsep.join([str(tools["nvdisasm"].parent), os.environ.get("PATH", "")])
    command = [tools["cuobjdump"], what, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout


def problems(compiled: list[Compiled], limits: dict[str, Any]) -> list[str]:
    """What is not as the limits say, a line each."""
    found = []
    for one in compiled:
        if one.failed:
            found.append(f"{one.source} {one.architecture}: nvcc failed")
        for name, kernel in one.kernels.items():
            what = f"{one.source} {one.architecture} {name}:"
            if kernel.stack_bytes or any(kernel.instructions[kind] for kind in STACK):
                accesses = sum(kernel.instructions[kind] for kind in STACK)
                found.append(f"{what} expected no stack, got {kernel.stack_bytes} bytes, {accesses} accesses")
            if not kernel.threads:
                found.append(f"{what} expected __launch_bounds__, got none")
                continue
            limit = limits.get(one.source, {}).get(name)
            if limit is None or one.architecture not in limit:
                found.append(f"{what} no limits; review the kernel, then --update")
                continue
            most, fewest = limit[one.architecture]["registers"], limit[one.architecture]["blocks_per_sm"]
            if kernel.registers > most:
                found.append(f"{what} expected at most {most} registers, got {kernel.registers}")
            blocks = blocks_per_sm(one.architecture, kernel.registers, kernel.threads, limit["shared_bytes"])
            if blocks < fewest:
                found.append(f"{what} expected at least {fewest} blocks per multiprocessor, got {blocks}")
            for kind in limit["instructions"]:
                if not kernel.instructions[kind]:
                    found.append(f"{what} expected {kind} in the machine code, got none")
    failed = {one.source for one in compiled if one.failed}
    for source, kernels in limits.items():
        there = {name for one in compiled if one.source == source for name in one.kernels}
        if source not in failed:
            found += [f"{source} {name}: limits without a kernel" for name in kernels if name not in there]
    return found


def updated(compiled: list[Compiled], limits: dict[str, Any]) -> dict[str, Any]:
    """Limits that just hold, registers rounded up to 8, the unit that they are given out in."""
    new: dict[str, Any] = {}
    for one in sorted(compiled, key=lambda one: one.source):
        for name, kernel in sorted(one.kernels.items()):
            old = limits.get(one.source, {}).get(name, {})
            default = [kind for kind, count in kernel.instructions.items() if count and kind not in STACK]
            limit = new.setdefault(one.source, {}).setdefault(
                name,
                {"shared_bytes": old.get("shared_bytes", 0), "instructions": old.get("instructions", default)},
            )
            registers = -(-kernel.registers // 8) * 8
            blocks = blocks_per_sm(one.architecture, registers, kernel.threads or 1024, limit["shared_bytes"])
            limit[one.architecture] = {"registers": registers, "blocks_per_sm": blocks}
    return new


def main(arguments: list[str] | None = None) -> int:
    """0 if all is as the limits say, 1 if not, 2 if it cannot be checked."""
    parser = argparse.ArgumentParser(prog="make cuda-check", description=__doc__)
    parser.add_argument("--sources", type=Path, default=Path(__file__).parent, help="folder of the .cu files")
    parser.add_argument("--limits", type=Path, default=Path(__file__).with_name("limits.json"))
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "cuda-check")
    parser.add_argument("--update", action="store_true", help="write registers and blocks of all kernels as limits")
    options = parser.parse_args(arguments)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("cuda-check: expected nvcc on PATH, found none: nothing was checked", file=sys.stderr)
        return 2
    limits = json.loads(options.limits.read_text()) if options.limits.exists() else {}
    work = [(source, one) for source in sorted(options.sources.glob("*.cu")) for one in SHARED_BYTES_OF_SM]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(lambda item: compile_kernels(*item, nvcc, options.cache), work))
    except CheckError as error:
        print(f"cuda-check: {error}", file=sys.stderr)
        return 2
    for one in compiled:
        print(f"--- {one.source} {one.architecture}\n{one.report}", end="")
    if options.update and not any(one.failed for one in compiled):
        limits = updated(compiled, limits)
        temporary = options.limits.with_suffix(".new")
        temporary.write_text(json.dumps(limits, indent=1) + "\n")
        temporary.rename(options.limits)
    found = problems(compiled, limits)
    kernels = sum(len(one.kernels) for one in compiled)
    print(*(f"FAIL {line}" for line in found), sep="\n", end="\n" if found else "")
    print(f"cuda-check: {kernels} kernels of {len(compiled)} compilations, {len(found)} problems")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
