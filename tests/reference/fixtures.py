"""Reference tensors of the official implementations: how a fixture becomes a model, folders and expected numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SHARED = Path(__file__).parents[2].parent / "shared" / "fixtures" / "adapters"


@dataclass(frozen=True)
class Fixture:
    """One file of reference tensors."""

    data: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Fixture:
        """Read the file."""
        return cls(torch.load(path, weights_only=True))

    def model(self) -> nn.Module:
        """The plain base model in eval mode, with the fixture's weights."""
        data = self.data
        fields = json.loads(data["config_json"])
        config = getattr(transformers, data["model_class"]).config_class.from_dict(fields)
        if "tie_word_embeddings" in fields:
            config.tie_word_embeddings = fields["tie_word_embeddings"]  # forgotten by some classes' from_dict
        model = getattr(transformers, data["model_class"])(config).eval()
        missing, unexpected = model.load_state_dict(data["base_state_dict"], strict=False)
        assert not unexpected, unexpected
        assert all("position_ids" in k or "lm_head" in k or "embed_tokens" in k or "decoder" in k for k in missing), (
            missing
        )
        model.tie_weights()
        return model

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a forward."""
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return {name: self.data[name] for name in names if self.data.get(name) is not None}

    def folders(self, root: Path) -> dict[str, Path]:
        """The peer's own files, written below `root`: each folder that holds a configuration, by its path."""
        found: dict[str, Path] = {}
        for name, content in self.data["ckpt_files"].items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.numpy().tobytes())
            found[str(Path(name).parent)] = file.parent
        return found

    def loss(self, logits: Tensor) -> Tensor:
        """The scalar whose gradients the fixture has."""
        return (logits * self.data["loss_weight"]).sum()
