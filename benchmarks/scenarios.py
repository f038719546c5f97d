"""All that can be measured."""

from __future__ import annotations

from . import commands, death, images, memory, starts, throughput
from .harness import Scenario

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="starts",
            what="from open_box() to ready, each way",
            run=starts.starts,
            rounds=30,
        ),
        Scenario(
            name="first-command",
            what="from open_box() to the exit of its first command",
            run=starts.first_command,
            rounds=30,
        ),
        Scenario(
            name="stages",
            what="a template start, stage by stage, and what follows",
            run=starts.stages,
            rounds=20,
        ),
        Scenario(
            name="exec",
            what="round trips in a started box",
            run=commands.commands,
            rounds=100,
        ),
        Scenario(
            name="exec-many",
            what="a command of 200, one by one and 20 at a time",
            run=throughput.many,
            rounds=5,
        ),
        Scenario(
            name="bulk-out",
            what="64 MiB out of a box",
            run=throughput.out,
            rounds=15,
            unit="MiB/s",
        ),
        Scenario(
            name="bulk-in",
            what="64 MiB into a box",
            run=throughput.into,
            rounds=15,
            unit="MiB/s",
        ),
        Scenario(
            name="trees",
            what="10,000 files of some hundred bytes",
            run=throughput.trees,
            rounds=3,
        ),
        Scenario(
            name="image-starts",
            what="open_box() to ready, of an image that the home has",
            run=images.starts,
            rounds=20,
        ),
        Scenario(
            name="pull",
            what="an image of 300 MB, from a registry to a root file system",
            run=images.pull,
            rounds=5,
        ),
        Scenario(
            name="pull-memory",
            what="the most memory that this takes",
            run=images.memory,
            rounds=3,
            unit="MiB",
        ),
        Scenario(
            name="parallel-starts",
            what="many template starts at once",
            run=starts.parallel,
            rounds=3,
        ),
        Scenario(
            name="memory",
            what="private memory of idle boxes",
            run=memory.memory,
            rounds=5,
            unit="MiB",
        ),
        Scenario(
            name="race-death",
            what="the race against the kernel's own latency",
            run=death.race_death,
            rounds=200,
        ),
        Scenario(
            name="vm-death",
            what="a real VM's death during a command",
            run=death.vm_death,
            rounds=10,
        ),
    )
}
