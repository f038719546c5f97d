"""The guest kit: the kernel and the root file system that every box boots."""

from .download import fetch_kernel as fetch_kernel
from .kernel import Kernel as Kernel, find_kernel as find_kernel
from .kit import GuestKit as GuestKit, prepare_kit as prepare_kit
from .sharing import sharing_kernel as sharing_kernel
