"""An encoder in PyTorch, pooled as its checkpoint says. Needs the extra `compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.evaluate.embedder import Vectors, embed_in_batches
from thrifty.evaluate.torch_model import load_torch_model
from thrifty.text.tokenizer import TextTokenizer


class TorchEmbedder:
    """Runs a BERT-like encoder in float32, on a GPU if there is one."""

    def __init__(self, folder: Path, label: str, identity: str) -> None:
        model = load_torch_model(folder, label, "AutoModel")
        import torch

        shape = load_encoder(folder).shape
        self._torch = torch
        self._pooling, self._normalize = shape.pooling, shape.normalize
        self.label = label
        self.identity = f"{identity}+torch-float32"
        self.tokenizer = TextTokenizer.load(folder)
        self.width, self.context_length = shape.hidden_size, shape.context_length
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device).eval()

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        """See `Embedder`."""
        return embed_in_batches(texts, self.width, self._run)

    def close(self) -> None:
        """Free the model."""
        del self._model

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Vectors:
        torch = self._torch
        attended = torch.from_numpy(mask).to(self._device)
        with torch.inference_mode():
            hidden = self._model(
                input_ids=torch.from_numpy(ids).to(self._device), attention_mask=attended
            ).last_hidden_state
            if self._pooling == "cls":
                pooled = hidden[:, 0]
            else:
                weights = attended[:, :, None].float()
                pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            if self._normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
            found: Vectors = pooled.cpu().numpy()
        return found
