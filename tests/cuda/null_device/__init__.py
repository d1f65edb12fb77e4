"""A CUDA device that computes nothing: torch's own CUDA code runs on a machine that has no GPU.

A preloaded library takes the place of NVIDIA's runtime, cuBLAS and NCCL (`runtime.cpp`), another that of the driver.
True are: which device a tensor is on, where the host waits, how many kernels are launched, what the allocator
holds. Numbers that kernels would compute are not: whatever lies in memory stands in for them.

It is built once and must be there before torch is imported, so what runs on it is a process of its own:
`null_device.run("-m", "null_device.steps", stdin=...)`.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

HERE = Path(__file__).parent
BUILDS = HERE.parents[2] / "build" / "null_device"
CUDA = "13"  # whose runtime has these functions
DRIVER = {
    "cuDevicePrimaryCtxGetState": "(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }",
    "cuCtxGetCurrent": "(void **context) { *context = (void *)1; return 0; }",
    "cuDeviceGet": "(int *device, int number) { *device = number; return 0; }",
    "cuGetErrorString": '(int error, const char **text) { *text = "none"; return 0; }',
    "cuModuleLoadData": "(void **module) { *module = (void *)1; return 0; }",
    "cuModuleGetFunction": "(void **function) { *function = (void *)1; return 0; }",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": "(int *count) { *count = 2; return 0; }",
}  # what hands something out; all other functions of the driver return 0 as well, and do nothing


def missing() -> str | None:
    """Why the device cannot be built here; None where it can."""
    import torch

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the null device is built for Linux on x86-64"
    if torch.version.cuda is None or torch.version.cuda.partition(".")[0] != CUDA:
        return f"the null device needs a torch for CUDA {CUDA}, this one is for {torch.version.cuda or 'CPUs alone'}"
    if torch.cuda.is_available() and torch.cuda.get_device_name() != "Null H100":
        return "there is a CUDA device here"
    if absent := [tool for tool in ("g++", "nm") if shutil.which(tool) is None]:
        return f"the null device is built with {' and '.join(absent)}"
    return None


def run(*arguments: str, stdin: str = "", devices: int = 1, folder: Path | None = None, timeout: float = 600) -> str:
    """What Python prints when it is called with these arguments where the device is.

    Raises:
        AssertionError: it failed; with what it said on stderr.
    """
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, input=stdin, env=environment(devices), cwd=folder, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"Python ended with {done.returncode} on the null device:\n{done.stderr[-5000:]}"
    return done.stdout


def environment(devices: int = 1) -> dict[str, str]:
    """The variables of a process that sees so many null devices. Builds them where that was not done yet."""
    folder = built()
    path = os.pathsep.join(filter(None, [str(HERE / "start"), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / "libnull_device.so"),
        "LD_LIBRARY_PATH": str(folder / "driver"),
        "NULL_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
    }


def built() -> Path:
    """The folder of the two libraries, made of the sources here and the torch that is installed."""
    import torch

    libraries = Path(torch.__file__).parent / "lib"
    (headers,) = {found.parent for found in libraries.parents[1].glob("nvidia/*/include/cuda_runtime_api.h")}
    sources = [*sorted(HERE.glob("*.cpp")), *sorted(HERE.glob("crt/*.h")), Path(__file__)]
    key = blake2b(b"".join([torch.__version__.encode(), *(file.read_bytes() for file in sources)]), digest_size=8)
    folder = BUILDS / key.hexdigest()
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        (draft / "driver").mkdir(parents=True)
        _write_stubs(libraries, draft)
        flags = ("g++", "-O1", "-fPIC", "-shared", "-w")
        runtime = [str(HERE / "runtime.cpp"), str(draft / "nccl.cpp")]
        _call(*flags, f"-I{headers}", f"-I{HERE}", *runtime, "-o", str(draft / "libnull_device.so"))
        driver = str(draft / "driver" / "libcuda.so.1")
        _call(*flags, str(draft / "driver.cpp"), "-Wl,-soname,libcuda.so.1", "-o", driver)
        try:
            draft.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return folder


def _write_stubs(libraries: Path, draft: Path) -> None:
    """Functions that torch calls, of which nothing is needed but that they succeed."""
    known = set(re.findall(r"\bnccl\w+(?=\()", (HERE / "runtime.cpp").read_text()))
    nccl = _undefined(libraries / "libtorch_cuda.so", "nccl") | _undefined(libraries / "libtorch_python.so", "nccl")
    (draft / "nccl.cpp").write_text(_functions(dict.fromkeys(nccl - known, "() { return 0; }")))
    driver = dict.fromkeys(_undefined(libraries / "libcaffe2_nvrtc.so", "cu[A-Z]"), "() { return 0; }")
    (draft / "driver.cpp").write_text(_functions({**driver, **DRIVER}))


def _undefined(library: Path, prefix: str) -> set[str]:
    """The functions with this prefix that a library expects of others."""
    return set(re.findall(rf" U ({prefix}\w+)", _call("nm", "-D", "--undefined-only", str(library))))


def _functions(bodies: dict[str, str]) -> str:
    return "".join(f'extern "C" int {name}{body}\n' for name, body in sorted(bodies.items()))


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
