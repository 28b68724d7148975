"""A student as one ONNX graph: token ids in, logits out; its prompt is a constant."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.students.row_prompts import RowPrompts
from kdcache.students.student import Student

LOGITS = "logits"
OPSET = 20
MOST_ROWS, FEWEST_TOKENS = 1 << 16, 2


class Graph(nn.Module):
    """What is exported: the forward pass of one student.

    Args:
        student: on the CPU, in eval mode.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.encoder = student.backbone.encoder

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits of shape (batch, outputs); inputs are of shape (batch, tokens)."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        rows, prompt = None, self.student.prompt
        if prompt is not None:
            values, count = prompt(), input_ids.shape[0]  # len() would make it a constant
            mask = attention_mask.new_ones((count, len(values)))
            rows = RowPrompts(prompt.place, values[None], mask, len(values))
        logits: torch.Tensor = self.student.head(self.student.backbone.pooled(batch, rows))[0]
        return logits


def write_graph(student: Student, max_tokens: int, inputs: list[str], path: Path) -> None:
    """Write a student as an ONNX file of float32, weights within, for any batch and length.

    Args:
        student: on the CPU.
        max_tokens: the most that a text may have.
        inputs: names of what the tokenizer gives that the encoder reads, in the order of ``Graph.forward``.
        path: of the file.

    Raises:
        ModelError: torch cannot export this architecture or method.
    """
    graph = Graph(student).eval()
    example = tuple(torch.ones(3, 7, dtype=torch.int64) for _ in inputs)
    batch = torch.export.Dim("batch", min=1, max=MOST_ROWS)
    tokens = torch.export.Dim("tokens", min=FEWEST_TOKENS, max=max_tokens)
    torch_log = logging.getLogger("torch.onnx")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph, example, str(path), dynamo=True, input_names=inputs, output_names=[LOGITS],
                dynamic_shapes=tuple({0: batch, 1: tokens} for _ in inputs), external_data=False,
                opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # of many types
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"onnx: the student's graph must be exportable, got {type(error).__name__}: {reason}. "
            "Use --to folder."
        ) from error
    finally:
        torch_log.setLevel(level)


def products(graph: Path) -> list[str]:
    """Name the products of states with weights, without the head's: its errors are those of the logits.

    Args:
        graph: a file of ``write_graph``.
    """
    model = onnx.load(str(graph)).graph
    outputs = {one.name: one.dims[-1] for one in model.initializer if len(one.dims) == 2}
    found = {
        node.name: outputs[node.input[1]]
        for node in model.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in outputs
    }
    return list(found)[:-1]


def quantise(source: Path, path: Path, names: Sequence[str]) -> None:
    """Write a graph with int8 in some products with weights, activations measured as they come.

    Args:
        source: a file of ``write_graph``.
        path: where to.
        names: of ``products``.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            source, path, weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"], nodes_to_quantize=list(names),
        )  # fmt: skip
    finally:
        root.setLevel(level)


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an exported file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute logits of shape (batch, outputs)."""
    names = [one.name for one in session.get_inputs()]
    found: np.ndarray = session.run(None, {name: batch[name] for name in names})[0]
    return found
