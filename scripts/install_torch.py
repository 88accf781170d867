"""Installs torch into the environment that runs this, and never gigabytes of CUDA by surprise.

A torch that is there and new enough is kept. With an NVIDIA GPU, or away from Linux, `torch` itself
is the right build. Otherwise a CPU build is taken where pip finds one, and if it finds none, the
choice is the user's: their words for `pip install` are this script's arguments.
"""

import re
import shutil
import subprocess
import sys

OLDEST = (2, 11)
CHOICE = f"""\
This machine shows no NVIDIA GPU, and pip finds no CPU build of torch for Python \
{sys.version_info.major}.{sys.version_info.minor}. Choose one of:

  make ... TORCH='torch --index-url URL'   the CPU build; https://pytorch.org/get-started names URL
  make ... TORCH=torch                     the CUDA build, several GB, which runs on a CPU as well
"""

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def is_installed() -> bool:
    """Whether torch imports here and is new enough."""
    command = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.returncode == 0 and numbers(found.stdout) >= OLDEST


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi"], capture_output=True).returncode == 0


def newest_cpu_build() -> str | None:
    """The requirement for the newest CPU build that pip, as it is set up here, finds."""
    command = [*PIP, "index", "versions", "torch"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    builds = [build for build in re.findall(r"[\d.]+\+cpu", listed) if numbers(build) >= OLDEST]
    return f"torch=={max(builds, key=numbers)}" if builds else None


def numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as ``(2, 13, 0)``."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def main(wanted: list[str]) -> int:
    """Installs what is ``wanted``, or the build that fits the machine; returns the exit code."""
    if not wanted:
        if is_installed():
            return 0
        plain = has_gpu() or not sys.platform.startswith("linux")
        build = "torch" if plain else newest_cpu_build()
        if build is None:
            print(CHOICE, file=sys.stderr, end="")
            return 2
        wanted = [build]
    print("installing", *wanted, flush=True)
    return subprocess.run([*PIP, "install", "--quiet", *wanted]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
