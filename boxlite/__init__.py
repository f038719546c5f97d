"""Boxes for Trio programs: real virtual machines in which untrusted code runs.

::

    async with boxlite.open_runtime() as runtime:
        async with runtime.open_box() as box:
            done = await box.run(["python3", "-c", "print(6 * 7)"])

A box is a nursery; starting it is a race; a lost race leaves a report.
"""

# The layers, top to bottom. A module may import from its own layer's package
# and from strictly lower lines; tests/unit/test_layers.py holds it to that.
#
#   cli, __main__                           the command line
#   _code                                   Python code in a box
#   _runtime                                the owner of a home
#   _pool, _residents                       boxes before anybody wants them; boxes on disk
#   _open_box                               what holds while a box is open
#   _box                                    what can be done with one
#   _run, _copy, _use                        a command to its end; a copy; a box in use
#   _copy_paths                             what a copy is called
#   _path, _publish                         a path in a box; a copy put in place
#   _execution                              a command while it runs
#   _startup                                stages, race, report
#   _preflight                              what this machine has, as checks
#   _host                                   single questions to this machine
#   _images                                 images: registries, the store, root file systems
#   _kit, _vm, _rpc                         kernel and root; QEMU; the guest session
#   _home, _ownership                       making a home directory; owning one
#   _command                                a checked command
#   _options                                checked options
#   _volume, _rlimits                       parts of them
#   _program                                a program, run to its end
#   _state, _secrets                        what a box is doing; what no report shows
#   _sockets, _process, _evidence, _scopes, _sparse, _removal  the system
#   _errors                                 every error
#   _layout, _report, _result, _code_result plain data
#   _tree                                   files as a stream of tar
#   _wire, _bulk                            what host, shim and guest agree on
#
# shim and guest run on their own, in other processes: they import _wire and,
# the guest, _bulk, _tree and _rpc._generated, and nothing else of this.

from ._box import Box as Box
from ._code.code_box import CodeBox as CodeBox
from ._code.simple_box import SimpleBox as SimpleBox
from ._code_result import (
    CodeError as CodeError,
    CodeResult as CodeResult,
    RichResult as RichResult,
)
from ._command import TerminalSize as TerminalSize
from ._copy import CopyProgress as CopyProgress, CopyResult as CopyResult
from ._errors import (
    BoxCrashedError as BoxCrashedError,
    BoxliteError as BoxliteError,
    BoxStartError as BoxStartError,
    BoxStartTimeoutError as BoxStartTimeoutError,
    CodeTimeoutError as CodeTimeoutError,
    CommandFailedError as CommandFailedError,
    CommandTimeoutError as CommandTimeoutError,
    CopyRefusedError as CopyRefusedError,
    ExecStartError as ExecStartError,
    GuestError as GuestError,
    GuestFailedError as GuestFailedError,
    GuestLostError as GuestLostError,
    GuestProtocolError as GuestProtocolError,
    GuestTimeoutError as GuestTimeoutError,
    HostError as HostError,
    ImageError as ImageError,
    ImageNotFoundError as ImageNotFoundError,
    ImageRefusedError as ImageRefusedError,
    InternalError as InternalError,
    InvalidOptionError as InvalidOptionError,
    RegistryError as RegistryError,
    RuntimeInUseError as RuntimeInUseError,
    StateError as StateError,
)
from ._execution import (
    CommandInput as CommandInput,
    CommandOutput as CommandOutput,
    Execution as Execution,
)
from ._images.endpoints import RegistryOptions as RegistryOptions
from ._images.flatten import ConvertProgress as ConvertProgress
from ._images.image import Image as Image
from ._images.images import Images as Images, Pruned as Pruned
from ._images.progress import PullProgress as PullProgress
from ._options import BoxOptions as BoxOptions, RuntimeOptions as RuntimeOptions
from ._path import BoxPath as BoxPath
from ._report import CrashKind as CrashKind, CrashReport as CrashReport
from ._result import ExecResult as ExecResult
from ._runtime import Runtime as Runtime, open_runtime as open_runtime
from ._startup.pipeline import StageEvent as StageEvent
from ._state import BoxState as BoxState
from ._vm.template import TemplateInfo as TemplateInfo
from ._volume import Volume as Volume

__version__ = "0.1.0"

# Tracebacks and reprs name what a user can import, not where it is written.
for _value in list(vars().values()):
    if isinstance(_value, type) and _value.__module__.startswith("boxlite._"):
        _value.__module__ = __name__
open_runtime.__module__ = __name__
del _value
