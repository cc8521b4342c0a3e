"""Distillation: a student learns what a teacher says.

`budwood.distill(teacher, student, data)` is `budwood.distill.run.distill`, whatever was imported before.
"""

from budwood.calling import make_callable

VERB = "run.distill"
make_callable(__name__)
