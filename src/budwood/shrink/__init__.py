"""Progressive shrinking: cut a little, refit, recover, look, go on.

`budwood.shrink(model, data, to=0.5)` is `budwood.shrink.run.shrink`, whatever was imported before.
"""

from budwood.calling import make_callable

VERB = "run.shrink"
make_callable(__name__)
