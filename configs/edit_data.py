"""``visuomotor data edit``: demonstrations filtered, cut, merged, resampled, ... into a new store or a view."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from visuomotor.data.editing.edit import EditReport, edit
from visuomotor.data.errors import ConfigError

__all__ = ["USAGE", "main", "print_report", "progress"]

USAGE = """\
visuomotor data edit <store> <out> <operation> [its words] [<operation> ...]

<out> ending with .json is a view: a small file that names episodes and steps of the store, read like a store
(data.path=train.json) and possible while no array changes. Any other <out> is a new store. Nothing is changed in place.

  filter <condition> ...      keep episodes: success=true 'task~=push' 'length>=50' 'duration<30' episode!=3
  drop faulty duplicates 3,7-9   leave out what holds NaN or is damaged, exact copies, and episodes by number
  trim idle [keep=<steps>]    rests of a second or longer at either end, but for 0.3 s
  trim start=5 end=10         steps off either end of every episode; trim episode=12 rows=10:200 of one
  set <column>:=<value> [<condition> ...]   set task:='push the T'; set weight:=0.2 success=false
  split train=0.8 val=0.1 test=0.1 [seed=0] [together=operator] [as=zarr]   <out> is a folder of parts
  split by=operator           a part for each value of a column
  merge with=b.zarr,c.json [hz=20] [common=true] [fill.operator=unknown]
  keys keep=a,b | drop=c [rename=old:new]   which arrays, and their names
  add gripper=state:6         an array of components of another; add from=more.npz: arrays with a row for each step
  resample hz=20 [hold=key] [sum=key]   images and whole numbers held, numbers linear, quaternions slerp; sum: deltas
  rate hz=10                  say the rate of a store that does not say it
  resize img=96x96            width x height
  uint8 [img]                 float images in 0..255 or 0..1
  quaternions [key]           length 1, and no jumps of sign within an episode

Quote conditions with < or > in a shell. `visuomotor data validate <store> fix=<out>` applies what needs no decision.
"""


def main(words: Sequence[str]) -> int:
    """Run ``visuomotor data edit``."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if len(words) < 3:
        raise ConfigError("data edit: expected <store> <out> <operation>; data edit --help lists the operations")
    print_report(edit(words[0], words[1], words[2:], progress()))
    return 0


def print_report(report: EditReport) -> None:
    """A line for each operation and for each file."""
    for line in report.lines:
        print(line)
    for path, episodes, steps in report.written:
        print(f"{path}: {episodes} episodes, {steps} steps")


def progress() -> Callable[[int, int], None] | None:
    """How many episodes are written, on a terminal; else nothing."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done} of {total} episodes", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
