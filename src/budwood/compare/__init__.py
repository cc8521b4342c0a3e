"""Methods against each other on the user's own data: each in a process of its own, all from the same rows.

`budwood.compare(model, data)` is `budwood.compare.run.compare`, whatever was imported before.
"""

from budwood.calling import make_callable

VERB = "run.compare"
make_callable(__name__)
