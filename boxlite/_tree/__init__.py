"""Files and trees of files as a stream of tar, for host and guest alike: standard library only."""
