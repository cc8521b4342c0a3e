"""How something is attached to a model: deltas, plans, and the operations on them."""

from budwood.core.attach import activate as activate
from budwood.core.attach import attach as attach
from budwood.core.attach import base_state_dict as base_state_dict
from budwood.core.attach import delta_at as delta_at
from budwood.core.attach import detach as detach
from budwood.core.attach import merge as merge
from budwood.core.attach import named_parameters as named_parameters
from budwood.core.attach import parameters as parameters
from budwood.core.attach import unfired as unfired
from budwood.core.attach import using as using
from budwood.core.delta import Delta as Delta
from budwood.core.delta import Mixer as Mixer
from budwood.core.delta import Source as Source
from budwood.core.method import Method as Method
from budwood.core.method import field_docs as field_docs
from budwood.core.plan import Fuse as Fuse
from budwood.core.plan import Plan as Plan
from budwood.core.plan import Route as Route
from budwood.core.plan import Skip as Skip
from budwood.core.plan import Stack as Stack
from budwood.core.plan import Sum as Sum
from budwood.core.registry import Adapter as Adapter
from budwood.core.registry import adapter_of as adapter_of
from budwood.core.registry import adapters as adapters
from budwood.core.registry import anatomy_of as anatomy_of
from budwood.core.sublayer import SubLayerDelta as SubLayerDelta
