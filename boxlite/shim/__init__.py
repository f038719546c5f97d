"""The shim: one small process per box that starts the VM, watches it and tells how it died.

It outlives both the host program and the VM for just long enough to write the
exit file. It runs on the standard library alone, in one thread, as one loop
around ``poll``, and it has QEMU running before it imports most of itself::

    __main__     makes the package importable without importing the host's side
    _program     the order of things, and what happens when something breaks
    _arguments   the command line
    _boxdir      files of the box's directory, replaced in one step
    _spawn       fork and exec of QEMU, and the handle on it
    _libc        what that needs of the C library
    _watch       what is watched while QEMU runs
    _reactor     the loop
    _signals     SIGTERM, as a descriptor for the loop
    _stopping    the ladder that ends QEMU
    _handshake   the control port's protocol, without I/O
    _control     the control port's bytes, never blocking
    _monitor     QEMU's monitor: the state of templates, saved and loaded
    _announce    the word to the host that the guest is ready
    _logs        the console log and stderr, bounded
    _exitfile    how the VM ended, as JSON

**The exit file** is one JSON object, written once, by rename, when QEMU is gone
or could not be started. Its ``type`` is one of:

``signal``
    QEMU was ended by a signal that the shim did not send: ``signal`` is its
    name, ``exit_code`` is 128 + its number.
``error``
    QEMU exited with ``exit_code`` other than 0, or could not be executed (127:
    no such program, 126: another reason). ``message`` is the last line that it
    wrote to stderr, or the reason; ``error_kind`` is ``unsupported`` when QEMU
    or this host cannot do what was asked, ``template`` when the state of a
    template could not be saved or loaded, else ``engine``.
``panic``
    The shim had an unhandled exception and killed QEMU. ``exit_code`` is 101,
    ``message`` the exception, ``location`` its file and line.
``exit``
    QEMU exited with 0, or the shim ended it. ``exit_code`` is 0; ``requested``
    tells whether the shim had been asked to.

Each also has ``ready``, whether the guest had said that it was, and ``time`` in
Unix seconds. The shim itself exits with ``exit_code``.

A shim that is killed leaves no exit file, and QEMU dies with it by its
parent-death signal. SIGTERM kills it too before its first line has run, in the
10 ms that the interpreter takes to start; later ones are held until the loop
can hear them.
"""
