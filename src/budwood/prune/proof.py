"""That a cut model computes what the uncut one does with closed gates, and that it runs at all."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.anatomy.probe import synthetic_batch, undisturbed
from budwood.errors import BadConfig, VerificationFailed
from budwood.prune.fit import Fit, Subject
from budwood.prune.gates import shut
from budwood.prune.kept import Kept

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest difference on a few made-up tokens, as a share of the largest value; 16-bit numbers are let off with 5 %."""


def prove(subject: Subject, found: Fit, new: PreTrainedModel, kept: Kept, *, is_exact: bool) -> None:
    """Run the cut model on a few made-up tokens, beside the uncut one where both compute the same.

    Raises BadConfig where the class does not run at its new sizes, VerificationFailed where its results differ.
    """
    if any(parameter.is_meta for parameter in new.parameters()):
        return
    batch = synthetic_batch(subject.model)
    try:
        got = _answer(new, batch)
    except Exception as error:  # whatever a class raises at sizes that do not suit it
        raise BadConfig(
            f"{type(new).__name__} cannot be cut so: it does not run at these sizes ({str(error).splitlines()[0]}); "
            "keep other blocks or more of them"
        ) from error
    _check_parts(subject, found, new)
    if not is_exact:
        return
    with shut(subject, kept):
        want = _answer(subject.model, batch)
    allowed = TOLERANCE.get(want.dtype, 0.05) * want.abs().max()
    if (off := (got - want).abs().max()) > allowed:
        raise VerificationFailed(
            f"the cut model's results differ from the uncut one's with closed gates by {off:.2g}, where {allowed:.2g} "
            "would be rounding; this model cannot be cut so: keep other units or blocks"
        )


@torch.no_grad()
def _answer(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with undisturbed(model):
        answer: Tensor = model(**batch)[0]
        return answer


def _check_parts(subject: Subject, found: Fit, new: PreTrainedModel) -> None:
    """Rows of fused projections must mean what they meant: asked of the new attention, where the rows moved."""
    fused = [site for site in subject.anatomy.sites if site.parts]
    if not any(f"{site.path}.weight" in found.axes for site in fused):
        return
    places = {old: new_name for new_name, old in found.names.items()}
    now = {site.path: site.parts for site in discover(new).sites}
    for site in fused:
        if (place := places.get(f"{site.path}.weight")) is None:
            continue
        axis = 1 if site.kind == "conv1d" else 0
        index = found.axes.get(f"{site.path}.weight", {}).get(axis, list(range(site.out_features)))
        before = {row: part.role for part in site.parts for start, stop in part.rows for row in range(start, stop)}
        after = {
            row: part.role
            for part in now[place.removesuffix(".weight")]
            for start, stop in part.rows
            for row in range(start, stop)
        }
        if [before[row] for row in index] != [after.get(row) for row in range(len(index))]:
            raise VerificationFailed(
                f"queries, keys and values lie in another order in the smaller {place}; keep other heads, or none cut"
            )
