"""A virtual environment that holds what akssl needs and nothing of akssl, and commands in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNBUILT = shutil.ignore_patterns(".*cache", ".venv", ".git", "build", "*.egg-info", "runs")
SITE = Path(sysconfig.get_paths()["purelib"])


class CleanEnvironment:
    """An environment of its own whose only way to akssl is a wheel.

    What akssl depends on is linked from the environment that runs the tests, since installing torch anew takes
    minutes and proves nothing about akssl; editable installs and their import hooks are left out.
    """

    def __init__(self, folder: Path, wheels: Path | None = None) -> None:
        self.folder, self.wheels = folder, wheels or folder / "wheels"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=120)
        self.bin = folder / "env" / "bin"
        dependencies = folder / "dependencies"
        dependencies.mkdir()
        for entry in SITE.iterdir():
            if "akssl" not in entry.name.lower() and entry.suffix != ".pth":
                (dependencies / entry.name).symlink_to(entry)
        self.site = next((folder / "env" / "lib").glob("python3*")) / "site-packages"
        (self.site / "dependencies.pth").write_text(f"{dependencies}\n")

    def pip(self, *arguments: object) -> str:
        """Pip of the outer environment, acting on this one, without an index."""
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check"]
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, *sources: Path) -> None:
        """Sources as they are published, and the wheels made of those; a copy is built, so nothing stale gets in."""
        for source in sources:
            copy = self.folder / "sources" / source.name
            shutil.copytree(source, copy, ignore=UNBUILT)
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", self.wheels, copy]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *names: str) -> str:
        """Install distributions from the wheels, with what they depend on."""
        return self.pip("install", "--no-index", "--find-links", self.wheels, *names)

    def run(self, *command: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of this environment, on two threads and without what the outer one has set."""
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "AKSSL"))}
        env = {**outer, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "2", **environment}
        words = [str(self.bin / str(command[0])) if (self.bin / str(command[0])).exists() else str(command[0])]
        words += map(str, command[1:])
        return subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=cwd or self.folder, env=env)
