"""The command line: it uses the public names, and the host checks for ``doctor``."""
