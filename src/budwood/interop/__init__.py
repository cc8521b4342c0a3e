"""Adapters on disk, in our format and other tools'."""

from budwood.interop.folder import Description as Description
from budwood.interop.folder import describe as describe
from budwood.interop.folder import load as load
from budwood.interop.folder import save as save
from budwood.interop.foreign import holds_adapter as holds_adapter
