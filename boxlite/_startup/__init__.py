"""How a box starts: a table of stages, a race, and a report when the race is lost."""
