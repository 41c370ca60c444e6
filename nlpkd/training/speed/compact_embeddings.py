"""Train only the embedding rows that the training text uses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from nlpkd.models.structure import all_parameters, input_table
from nlpkd.utils.object_hashes import is_foreign

logger = logging.getLogger(__name__)

_READ_ROWS = 100_000

_WORTH = 0.9
"""Share of the table above which a compact one saves next to nothing."""


class CompactEmbedding(nn.Embedding):
    """An embedding table split into the rows that are trained, which are its parameter, and the rest.

    A row that no training text names has no gradient, so that AdamW without weight decay never moves it; left out of
    the parameter, it costs no zeros in the gradient, the norm and the optimizer's moments. The state dict is that of
    the whole table.

    Args:
        table: the whole table, which is not touched.
        rows: ids of the rows to train, `(rows,)`, in ascending order.
    """

    rows: Tensor
    place: Tensor
    others: Tensor

    def __init__(self, table: nn.Embedding, rows: Tensor):
        padding = table.padding_idx
        place = torch.full((table.num_embeddings,), -1, dtype=torch.long, device=table.weight.device)
        place[rows] = torch.arange(len(rows), device=place.device)
        own = int(place[padding]) if padding is not None and place[padding] >= 0 else None
        weight = table.weight.detach()
        super().__init__(len(rows), table.embedding_dim, padding_idx=own, _weight=weight[rows].clone())
        self.train(table.training)
        self.register_buffer("rows", rows.to(place.device), persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("others", weight, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Look ids up, `(batch, seq)` into `(batch, seq, hidden)`: any id, but while training only the rows' own."""
        places = self.place[input]
        if self.training:
            return F.embedding(places, self.weight, self.padding_idx)
        known = (places >= 0).unsqueeze(-1)
        return torch.where(known, F.embedding(places.clamp(min=0), self.weight), F.embedding(input, self.others))

    def whole(self, values: Tensor, rest: Tensor | None = None) -> Tensor:
        """Put one value a trained row, `(rows, hidden)`, into a whole table, with `rest` or zeros in the others."""
        shape = (len(self.place), *values.shape[1:])
        table = values.new_zeros(shape) if rest is None else rest.clone()
        table[self.rows] = values
        return table

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.whole(self.weight.detach(), self.others)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + "weight"
        if key not in state_dict or len(state_dict[key]) != len(self.place):
            return super()._load_from_state_dict(state_dict, prefix, *args)
        with torch.no_grad():
            self.others.copy_(state_dict[key])
            self.weight.copy_(self.others[self.rows])


class CompactTraining:
    """A model whose input embeddings are compact while an optimizer trains it.

    Losses, gradients and updates are those of the whole table, but for the rounding of the gradients' norm, whose sum
    has fewer zeros in it. Checkpoints keep the whole table and whole moments: a run may be resumed with or without.

    Args:
        model: with `get_input_embeddings`.
        rows: ids of the rows to train.
    """

    def __init__(self, model: Any, rows: Tensor):
        self.model = model
        self.table = model.get_input_embeddings()
        self.compact = CompactEmbedding(self.table, rows)
        self.optimizer: torch.optim.Optimizer | None = None
        self.hooks: list[Any] = []
        model.set_input_embeddings(self.compact)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of the compact table save and load the moments of the whole one.

        Args:
            optimizer: AdamW or another that treats every element alone; once followed, no further one is.
        """
        if self.optimizer is not None:
            return
        self.optimizer = optimizer
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.number = next(n for n, parameter in enumerate(parameters) if parameter is self.compact.weight)
        saving = optimizer.register_state_dict_post_hook(self._save)
        loading = optimizer.register_load_state_dict_pre_hook(self._load)
        self.hooks = [saving, loading]

    def end(self) -> None:
        """Put the whole table back into the model, trained, and the moments that belong to it into the optimizer."""
        whole, compact = self.table.weight, self.compact.weight
        with torch.no_grad():
            # The other rows were never anywhere else.
            whole[self.compact.rows] = compact
        whole.grad = None
        self.model.set_input_embeddings(self.table)
        for hook in self.hooks:
            hook.remove()
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["params"] = [whole if parameter is compact else parameter for parameter in group["params"]]
        if compact in self.optimizer.state:
            self.optimizer.state[whole] = self._change_moments(self.optimizer.state.pop(compact), self.compact.whole)

    def _change_moments(self, state: dict[str, Any], change: Any) -> dict[str, Any]:
        """Change what an optimizer keeps for each element, not its scalars."""
        return {name: change(value) if getattr(value, "ndim", 0) == 2 else value for name, value in state.items()}

    def _save(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return self._with_changed_moments(state, self.compact.whole)

    def _load(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return self._with_changed_moments(state, lambda moments: moments[self.compact.rows.to(moments.device)])

    def _with_changed_moments(self, state: dict[str, Any], change: Any) -> dict[str, Any]:
        own = state["state"].get(self.number)
        return (
            state
            if own is None
            else state | {"state": state["state"] | {self.number: self._change_moments(own, change)}}
        )


def has_own_table(model: nn.Module) -> bool:
    """Check whether a model trains a plain embedding table that nothing else in it reads."""
    table = input_table(model)
    if type(table) is not nn.Embedding or not table.weight.requires_grad or table.max_norm is not None:
        return False
    # Code of somebody's own may read the weights without looking words up.
    shares = sum(parameter is table.weight for parameter in all_parameters(model))
    return shares == 1 and not any(is_foreign(type(module)) for module in model.modules())


def compact_training(model: Any, dataset: Dataset, always: Sequence[int], log: bool) -> CompactTraining | None:
    """Make a model's embeddings compact, if it has a table of its own for them and uses few of its rows.

    `nlpkd.training.speed.lean.refused_speed_ups` decides whether the training allows it.

    Args:
        model: the student.
        dataset: the training rows.
        always: ids to train whether the rows have them or not, such as the special tokens'.
        log: say how many rows are trained.

    Returns:
        What ends it, or None where the model was left alone.
    """
    if not has_own_table(model):
        return None
    table: Any = input_table(model)
    rows = used_rows(dataset, always)
    if len(rows) > _WORTH * table.num_embeddings or rows[-1] >= table.num_embeddings:
        return None
    if log:
        told = f"{len(rows):,} of {table.num_embeddings:,}"
        logger.warning("Training the %s embedding rows that the text uses.", told)
    return CompactTraining(model, rows)


def used_rows(dataset: Dataset, always: Sequence[int]) -> Tensor:
    """Find the token ids that a data set uses.

    Args:
        dataset: with `input_ids`.
        always: further ids, such as the special tokens'.

    Returns:
        Ids in ascending order, `(rows,)`.
    """
    found = [np.asarray(always, dtype=np.int64)]
    for batch in dataset.select_columns("input_ids").with_format("arrow").iter(_READ_ROWS):
        found.append(np.unique(pc.list_flatten(batch.column("input_ids")).to_numpy()))
    return torch.from_numpy(np.unique(np.concatenate(found)).astype(np.int64))
