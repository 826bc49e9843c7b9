"""A decoder's graph as it is served: with the changes of the adapter that lies beside it.

The adapter's matrices are multiplied beside the base's, which may be compressed, and their product
is added. GenAI does the same when it loads an adapter in the mode STATIC; here it is done for
graphs that we run ourselves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

from thrifty.artifacts.lora import ADAPTER_FOLDER, Lora, read_lora
from thrifty.errors import IntegrityError


def read_graph(folder: Path) -> ov.Model:
    """The graph in `folder`, with its adapter if it has one. Raises `IntegrityError` for an adapter
    of another model.
    """
    model = ov.Core().read_model(folder / "openvino_model.xml")
    if (folder / ADAPTER_FOLDER).is_dir():
        _add(model, read_lora(folder / ADAPTER_FOLDER))
    return model


def _add(model: ov.Model, lora: Lora) -> None:
    products = {
        node.get_friendly_name(): node
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and node.get_friendly_name() in lora.matrices
    }
    missing = sorted(set(lora.matrices) - set(products))
    if missing:
        raise IntegrityError(
            f"the adapter is for another model: it changes {missing[0]}, which this one does not have"
        )
    for name, (down, up) in lora.matrices.items():
        product = products[name]
        columns, rows = (product.input_value(1).get_partial_shape()[axis] for axis in (1, 0))
        if (columns.get_length(), rows.get_length()) != (down.shape[1], len(up)):
            raise IntegrityError(
                f"the adapter is for another model: it changes {len(up)} x {down.shape[1]} weights of "
                f"{name}, and the model has {rows} x {columns} there"
            )
        consumers = list(product.output(0).get_target_inputs())
        thin = op.matmul(product.input_value(0), _floats(lora.scale * down), False, True)
        changed = op.add(product, op.matmul(thin, _floats(up), False, True))
        for consumer in consumers:
            consumer.replace_source_output(changed.output(0))
    model.validate_nodes_and_infer_types()


def _floats(values: np.ndarray) -> ov.Node:
    return op.constant(values.astype(np.float32))
