"""Run the shim: ``python -I -S .../boxlite/shim/__main__.py --box-dir DIR ... -- QEMU ...``.

It is run as a file, not with ``-m``: ``-m boxlite.shim`` would first import the
package ``boxlite``, and with it Trio, and running the directory would cost the
import of ``runpy``. So the package is stood in for by an empty module that knows
where its parts lie. They then have the same names here as everywhere else.
"""

from __future__ import annotations

import os
import sys


def _stand_in_for_package() -> None:
    package = type(sys)("boxlite")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["boxlite"] = package


if __name__ == "__main__":
    _stand_in_for_package()
    from boxlite.shim._program import main

    # Not sys.exit: on a full disk, flushing stderr would replace the exit code.
    os._exit(main(sys.argv[1:]))
