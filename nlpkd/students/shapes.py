"""Published shapes of students."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # Jiao et al. (2020), TinyBERT, arXiv:1909.10351
    "tinybert-4l-312": {"layers": 4, "hidden_size": 312, "num_attention_heads": 12, "intermediate_size": 1200},
    "tinybert-6l-768": {"layers": 6, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    # Turc et al. (2019), Well-Read Students Learn Better, arXiv:1908.08962
    "bert-tiny": {"layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512},
    "bert-mini": {"layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "bert-small": {"layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "bert-medium": {"layers": 8, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    # Wang et al. (2020), MiniLM, arXiv:2002.10957
    "minilm-6l-384": {"layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "minilm-12l-384": {"layers": 12, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
}
"""Published students by name, as `nlpkd.students.narrow.narrow_student` takes them."""
