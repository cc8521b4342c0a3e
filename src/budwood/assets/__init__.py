"""Models and data by name: demo assets from pinned packages, folders, GGUF files and the hub."""

from budwood.assets.catalogue import CATALOGUE as CATALOGUE
from budwood.assets.catalogue import Asset as Asset
from budwood.assets.load import load_model as load_model
from budwood.assets.load import load_tokenizer as load_tokenizer
from budwood.assets.load import stored_context as stored_context
from budwood.assets.load import stored_kind as stored_kind
from budwood.assets.load import stored_labels as stored_labels
from budwood.assets.resolve import ModelRef as ModelRef
from budwood.assets.resolve import resolve_data as resolve_data
from budwood.assets.resolve import resolve_model as resolve_model
from budwood.assets.store import Entry as Entry
from budwood.assets.store import cache_root as cache_root
from budwood.assets.store import clean as clean
from budwood.assets.store import entries as entries
from budwood.assets.store import get as get
