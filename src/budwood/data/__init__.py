"""Text to token batches: reading, shapes, templates, masking, order and collation. Knows no model."""

from budwood.data.batch import IGNORE as IGNORE
from budwood.data.batch import Batch as Batch
from budwood.data.batch import EpochOrder as EpochOrder
from budwood.data.batch import Example as Example
from budwood.data.batch import Position as Position
from budwood.data.batch import collate as collate
from budwood.data.checks import with_validation as with_validation
from budwood.data.corpus import Conversation as Conversation
from budwood.data.corpus import Corpus as Corpus
from budwood.data.corpus import Labelled as Labelled
from budwood.data.corpus import Row as Row
from budwood.data.corpus import Text as Text
from budwood.data.corpus import Turn as Turn
from budwood.data.encode import Encoded as Encoded
from budwood.data.encode import EncodingReport as EncodingReport
from budwood.data.encode import encode as encode
from budwood.data.encode import encode_prompts as encode_prompts
from budwood.data.sources import read as read
