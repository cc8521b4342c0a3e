"""Several LoRA adapters merged into one: `budwood.combine` is this package and, called, its one verb.

`budwood.combine(model, ("a", "b"), name="both")` is `budwood.combine.adapters.combine`, whatever was imported before.
"""

from __future__ import annotations

from budwood.calling import make_callable
from budwood.combine.adapters import Combined as Combined
from budwood.combine.adapters import combine as combine
from budwood.combine.recipe import HOWS as HOWS
from budwood.combine.recipe import Recipe as Recipe
from budwood.combine.recipe import check_weights as check_weights

VERB = "adapters.combine"
make_callable(__name__)
