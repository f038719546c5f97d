"""Python code in a box, statement by statement."""
