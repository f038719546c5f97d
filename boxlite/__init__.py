"""Boxes for Trio programs: real virtual machines in which untrusted code runs."""
