"""What is known to cause what: of signals, of QEMU's messages, of errors of a first program."""

from __future__ import annotations

import errno
from typing import Final

RAISE_MEMORY: Final = "the guest ran out of memory: raise memory_mib"
SOMEBODY: Final = "somebody or some supervisor killed the process"


#: Why QEMU is ended by a signal, and what usually leads there.
SIGNALS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "SIGKILL": (
        "QEMU was killed from outside (SIGKILL).",
        ("the host ran out of memory and its kernel killed the VM: see dmesg", SOMEBODY),
    ),
    "SIGABRT": (
        "QEMU gave up on an internal error (SIGABRT).",
        (
            "KVM cannot run this guest: try accelerator='tcg'",
            "a defect in QEMU, or a QEMU that does not fit this host",
        ),
    ),
    "SIGSYS": (
        "QEMU's own seccomp sandbox stopped it (SIGSYS).",
        ("this QEMU needs a system call that its sandbox denies: see dmesg",),
    ),
    "SIGILL": (
        "QEMU executed an instruction that this CPU does not have (SIGILL).",
        ("a QEMU built for another CPU",),
    ),
    "SIGSEGV": (
        "QEMU made an invalid memory access (SIGSEGV).",
        (
            "a defect in QEMU, perhaps provoked: treat the guest's code as hostile",
            "a damaged installation of QEMU or its libraries",
        ),
    ),
    "SIGBUS": (
        "QEMU could not have a page of the guest's memory, which is a file (SIGBUS).",
        (
            "the file system of the home is full",
            "the file of the template was cut short while the VM ran",
        ),
    ),
}


_LOWER_MEMORY: Final = "too little free memory on the host: lower memory_mib"
_CHECK_KERNEL: Final = "a damaged or foreign kernel file: check RuntimeOptions.kernel"
_OLD_QEMU: Final = "a QEMU that is too old or built without a feature"
#: What QEMU says, in lower case, and what it means. First match wins.
QEMU_MESSAGES: Final = (
    ("could not access kvm", "The accelerator KVM could not be opened.",
     ("no right to open /dev/kvm: sudo usermod -aG kvm $USER, and log in again",
      "no KVM on this host: use accelerator='auto' or 'tcg'")),
    ("failed to initialize kvm", "The accelerator KVM could not be used.",
     ("no KVM on this host: use accelerator='auto' or 'tcg'",)),
    ("kvm_exit_internal_error", "The host's KVM cannot run this guest.",
     ("nested virtualisation that does not work: use accelerator='tcg'",)),
    ("cannot set up guest memory", "The host did not give QEMU the memory of the guest.",
     (_LOWER_MEMORY, "a memory limit on this process")),
    ("cannot allocate memory", "The host did not give QEMU the memory of the guest.",
     (_LOWER_MEMORY, "a memory limit on this process")),
    ("no space left on device", "The disk is full.", ("the file system of the home is full",)),
    ("cannot execute", "QEMU could not be executed.",
     ("QEMU was removed or upgraded a moment ago: see RuntimeOptions.qemu",)),
    ("error loading", "QEMU could not load the kernel or the initramfs.", (_CHECK_KERNEL,)),
    ("could not open", "QEMU could not open one of its files.",
     ("a file of the box was removed or cannot be read",)),
    ("could not load", "QEMU could not load one of its files.",
     (_CHECK_KERNEL,
      "firmware of QEMU is missing: install the packages seabios and qemu-system-data")),
    ("invalid kernel header", "QEMU does not take the kernel file.",
     ("not a bzImage for this architecture: check RuntimeOptions.kernel",)),
    ("not supported", "This QEMU does not support what boxlite asks of it.", (_OLD_QEMU,)),
    ("invalid option", "This QEMU refuses an option that boxlite gives it.", (_OLD_QEMU,)),
    ("invalid parameter", "This QEMU refuses an option that boxlite gives it.", (_OLD_QEMU,)),
    ("is not a valid", "This QEMU refuses an option that boxlite gives it.", (_OLD_QEMU,)),
)  # fmt: skip


#: What an errno of execve(2) usually means for the first program of a root.
INIT_ERRORS: Final = {
    errno.ENOENT: "the first program, or the loader that it names, is missing in the image",
    errno.EACCES: "the first program may not be executed",
    errno.ENOEXEC: "the first program is built for another architecture, or is no program",
    errno.ENOMEM: RAISE_MEMORY,
}
