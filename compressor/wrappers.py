"""How a Hugging Face model is called when it is served: which inputs it takes, and which of its answers it gives.

Attention runs in transformers' `eager` form: its exported graph quantizes better than that of `sdpa` (MiniLM at 128
tokens, dynamic INT8, one core: 121 rows per second against 101). Answers have names of their own (`token_embeddings`,
not `last_hidden_state`), because the exporter names inner values after the model's attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.artifact import Axis, Tensor
from protos.datatypes import BY_NAME

if TYPE_CHECKING:  # a recipe is checked against this table without the seconds that torch takes to import
    import torch

Answer = Callable[[Any, "dict[str, torch.Tensor]"], "tuple[torch.Tensor, ...]"]


PADDED_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}
"""Models that count positions from the padding token's number on, so that the first table rows are never used."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """`architecture` is the transformers class that loads the folder; `answer` takes its output and the inputs."""

    name: str
    architecture: str
    outputs: tuple[str, ...]
    answer: Answer
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")

    def tensors(self, config: Any) -> tuple[Tensor, ...]:
        """The inputs with their axes; the model's longest position bounds the sequence."""
        if "pixel_values" in self.inputs:
            size = config.image_size
            height, width = (size, size) if isinstance(size, int) else size
            shape = (Axis("batch"), getattr(config, "num_channels", 3), height, width)
            return (Tensor("pixel_values", BY_NAME["FP32"], shape),)
        longest = getattr(config, "max_position_embeddings", None)
        if isinstance(longest, int) and getattr(config, "model_type", "") in PADDED_POSITIONS:
            longest -= config.pad_token_id + 1
        axes = (Axis("batch"), Axis("sequence", maximum=longest if isinstance(longest, int) and longest > 0 else None))
        return tuple(Tensor(name, BY_NAME["INT64"], axes) for name in self.inputs)


def mean_pooled(answer: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of the token embeddings under the attention mask, then L2 norm 1: sentence-transformers' Pooling(mean) and
    Normalize, with their floors (1e-9 for the count, 1e-12 for the norm). [batch, hidden]."""
    mask = inputs["attention_mask"].unsqueeze(-1).to(answer.last_hidden_state.dtype)
    mean = (answer.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return unit(mean)


def first_token(answer: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first token's embedding, L2 norm 1 (models trained with CLS pooling). [batch, hidden]."""
    return unit(answer.last_hidden_state[:, 0])


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Each row at L2 norm 1, as torch.nn.functional.normalize has it."""
    length: torch.Tensor = vectors.norm(p=2, dim=1, keepdim=True)
    return vectors / length.clamp_min(1e-12)


WRAPPERS: dict[str, Wrapper] = {
    wrapper.name: wrapper
    for wrapper in (
        Wrapper("sentence_embedding", "AutoModel", ("sentence_embedding",), lambda a, i: (mean_pooled(a, i),)),
        Wrapper("cls_embedding", "AutoModel", ("sentence_embedding",), lambda a, i: (first_token(a, i),)),
        Wrapper("token_embeddings", "AutoModel", ("token_embeddings",), lambda a, i: (a.last_hidden_state,)),
        Wrapper("sequence_classification", "AutoModelForSequenceClassification", ("logits",), lambda a, i: (a.logits,)),
        Wrapper("token_classification", "AutoModelForTokenClassification", ("logits",), lambda a, i: (a.logits,)),
        Wrapper("masked_lm", "AutoModelForMaskedLM", ("logits",), lambda a, i: (a.logits,)),
        Wrapper(
            "question_answering",
            "AutoModelForQuestionAnswering",
            ("start_logits", "end_logits"),
            lambda a, i: (a.start_logits, a.end_logits),
        ),
        Wrapper(
            "image_classification",
            "AutoModelForImageClassification",
            ("logits",),
            lambda a, i: (a.logits,),
            inputs=("pixel_values",),
        ),
    )
}
