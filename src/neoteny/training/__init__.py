"""Training: inside a pack. Events, the fold over a script, the clock, named keys and the compute ledger."""

from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Reached, Save, Switch, Train
from neoteny.training.keys import Purpose, named_key, root_key
from neoteny.training.ledger import count_flops

__all__ = [
    "Evaluate",
    "Event",
    "Fork",
    "Intervene",
    "Probe",
    "Purpose",
    "Reached",
    "Save",
    "Switch",
    "Train",
    "count_flops",
    "named_key",
    "root_key",
]
