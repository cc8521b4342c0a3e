"""What a model is made of, as data: sites with roles, sub-layers, and how they are discovered."""

from budwood.anatomy.discover import discover as discover
from budwood.anatomy.site import ROLES as ROLES
from budwood.anatomy.site import Anatomy as Anatomy
from budwood.anatomy.site import AttentionCall as AttentionCall
from budwood.anatomy.site import Part as Part
from budwood.anatomy.site import Site as Site
from budwood.anatomy.site import SubLayer as SubLayer
from budwood.anatomy.site import is_called as is_called
