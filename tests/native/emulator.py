"""Runs static programs on an emulated CPU that has AVX-512 (Bochs), for machines that have none.

The image is a Debian kernel with an initial file system of the programs and csrc/tests/emulator/init.cpp; results
come back through the serial port. Needs Debian's packages bochs, bochs-term, isolinux, syslinux-common, xorriso, cpio,
and fetches the kernel with apt-get download.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bochs", "script", "xorriso", "cpio", "apt-get", "dpkg")
ISOLINUX = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
# Bochs 2.7 reports a size of the compacted register state that Linux does not believe, so that is not used.
KERNEL_OPTIONS = "console=ttyS0 rdinit=/init quiet clearcpuid=xsavec,xsaves nopku mitigations=off acpi=off tsc=reliable"
MACHINE = """\
display_library: term
cpu: model=corei7_skylake_x, count=1, ips=100000000
megs: 512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial
log: {folder}/log
clock: sync=none
"""


def missing() -> str:
    """What is not installed, or nothing."""
    names = [tool for tool in TOOLS if shutil.which(tool) is None]
    return ", ".join(names + [str(path) for path in ISOLINUX if not path.exists()])


def run(programs: dict[str, Path], arguments: list[str], folder: Path, seconds: int) -> dict[str, bytes]:
    """What each program wrote to the file that is its last argument.

    Raises:
        RuntimeError: a program failed, or not all were done in time.
    """
    _make_image(programs, arguments, folder)
    (folder / "machine").write_text(MACHINE.format(folder=folder))
    (folder / "debugger").write_text("c\n")  # Debian's Bochs waits for this
    emulator = f"bochs -q -f {folder}/machine -rc {folder}/debugger"
    serial = folder / "serial"
    with subprocess.Popen(
        ["timeout", str(seconds), "script", "-qc", emulator, "/dev/null"],
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not (serial.exists() and b"FINISHED" in serial.read_bytes()[-4096:]):
            time.sleep(1)
        process.terminate()
    return _results(serial.read_text(errors="replace") if serial.exists() else "", list(programs))


def _make_image(programs: dict[str, Path], arguments: list[str], folder: Path) -> None:
    root, disk = folder / "root", folder / "disk"
    root.mkdir()
    (disk / "isolinux").mkdir(parents=True)
    init = ["c++", "-O1", "-static", str(ROOT / "csrc/tests/emulator/init.cpp"), "-o", str(root / "init")]
    subprocess.run(init, check=True)
    for name, program in programs.items():
        shutil.copy(program, root / name)
    (root / "jobs").write_text("".join(f"/{name} {' '.join(arguments)} /{name}.out\n" for name in programs))
    files = "\n".join(sorted(path.name for path in root.iterdir())).encode()
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=files, capture_output=True)
    (disk / "initrd.gz").write_bytes(gzip.compress(archive.stdout, 1))
    shutil.copy(_kernel(folder), disk / "vmlinuz")
    for path in ISOLINUX:
        shutil.copy(path, disk / "isolinux")
    (disk / "isolinux/isolinux.cfg").write_text(
        f"DEFAULT linux\nLABEL linux\n  KERNEL /vmlinuz\n  APPEND initrd=/initrd.gz {KERNEL_OPTIONS}\n"
    )
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(folder / "boot.iso")]
    command += ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    subprocess.run([*command, "-boot-info-table", str(disk)], check=True, capture_output=True)


def _kernel(folder: Path) -> Path:
    depends = ["apt-cache", "depends", "linux-image-cloud-amd64"]
    printed = subprocess.run(depends, check=True, capture_output=True, text=True).stdout
    package = next(line.split()[1] for line in printed.splitlines() if "Depends: linux-image" in line)
    subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
    subprocess.run(["dpkg", "-x", str(next(folder.glob("linux-image*.deb"))), "kernel"], cwd=folder, check=True)
    return next((folder / "kernel/boot").glob("vmlinuz*"))


def _results(printed: str, names: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    name = ""
    for line in printed.splitlines():
        words = line.split()
        if words[:1] == ["JOB"]:
            name = words[1].lstrip("/")
            if words[2] != "0":
                raise RuntimeError(f"{name}: wait status {words[2]} in the emulator")
            found[name] = b""
        elif words[:1] == ["D"]:
            part = bytes.fromhex(words[2])
            if sum(part) != int(words[3]) or int(words[1]) * 64 != len(found[name]):
                raise RuntimeError(f"{name}: the serial port lost something in line {words[1]}")
            found[name] += part
    if list(found) != names or "FINISHED" not in printed:
        raise RuntimeError(f"the emulator did not finish: {', '.join(found)} of {', '.join(names)}\n{printed[-2000:]}")
    return found
