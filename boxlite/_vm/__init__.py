"""The virtual machine: whether it can run here, its command line, and its shim.

``qemu`` finds the program, and ``accel`` decides between KVM and software
emulation by having ``kvm_probe`` run a guest; ``ask`` and ``memo`` serve both.
``argv`` is the command line as data; ``shim_command`` and ``shim`` start it and
see it end.

Nothing here knows what a box is: :mod:`boxlite._startup` puts it together.
"""
