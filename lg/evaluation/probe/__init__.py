"""Which layers must see everything: measured on a pretrained model, before it is trained further.

>>> from lg.evaluation.probe import Needle, OneOut, Probe
>>> finding = OneOut(Needle(hay)).run(Probe(decoder, SinkWindow(window=512)))  # doctest: +SKIP
>>> finding.sets[1]  # the two layers that matter most  # doctest: +SKIP
[12, 17]
"""

from lg.evaluation.probe.adapted import Adapted, candidates, rungs
from lg.evaluation.probe.crew import Crew, Unit
from lg.evaluation.probe.gates import Gates
from lg.evaluation.probe.heads import PerHeadPlan, per_head
from lg.evaluation.probe.mass import Mass
from lg.evaluation.probe.measure import Finding, Measure, Probe, Unmeasurable
from lg.evaluation.probe.notebook import Notebook
from lg.evaluation.probe.search import Greedy, OneIn, OneOut
from lg.evaluation.probe.tasks import Context, Needle, Task
from lg.evaluation.probe.texts import pieces

__all__ = [
    "Adapted",
    "Context",
    "Crew",
    "Finding",
    "Gates",
    "Greedy",
    "Mass",
    "Measure",
    "Needle",
    "Notebook",
    "OneIn",
    "OneOut",
    "PerHeadPlan",
    "Probe",
    "Task",
    "Unit",
    "Unmeasurable",
    "candidates",
    "per_head",
    "pieces",
    "rungs",
]
