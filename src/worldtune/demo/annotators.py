"""Tiny networks of the annotators' own classes, with random weights, in the layout of the hub.

They annotate nothing sensible; they run the same code and write the same files as the released ones.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
)

from worldtune.formats.keypoints import NUM_KEYPOINTS

if TYPE_CHECKING:
    import onnx

SEED = 0
OPSET, IR_VERSION = 18, 8
"""Versions of ONNX that every onnxruntime of the last years reads."""

Step = tuple[str, list[str], list[str], dict[str, Any]]
"""An operation of a network: kind, inputs, outputs, options."""
Output = tuple[str, int, list[int | str]]
"""An output of a network: name, type, shape."""


def write_depth_network(folder: Path) -> None:
    """Write a Depth-Anything-V2 network of 0.1 million parameters and its image processor to `folder`."""
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    processor = DPTImageProcessor(
        do_resize=True,
        size={"height": 56, "width": 56},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        do_normalize=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_keypoint_networks(folder: Path, detector: str, pose: str) -> None:
    """Write two networks in ONNX to `folder`, with the inputs and outputs of those that rtmlib runs.

    The detector, a picture [1, 3, 64, 64] to boxes [1, N, 5] with labels [1, N], puts three boxes about places that
    depend on the picture's mean colour, some of them certain, and suppresses overlapping ones. The pose network,
    pictures [n, 3, 64, 48] to SimCC [n, 133, 96] and [n, 133, 128], has random weights.

    Args:
        folder: where to write.
        detector: name of the detector's file.
        pose: name of the pose network's file.
    """
    # Imported here: only development depends on it.
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_detector(), folder / detector)
    onnx.save(_pose(), folder / pose)


def _detector() -> "onnx.ModelProto":
    from onnx import helper

    rng = np.random.default_rng(SEED)
    constants: dict[str, np.ndarray] = {
        "spatial": np.array([2, 3]),
        # Three people, of whom each has a place (two numbers) and a confidence.
        "weights": rng.normal(0, 0.01, (3, 9)).astype(np.float32),
        "bias": np.array([-0.8, 0.0, 3.0, 0.8, 0.2, 0.5, 0.0, 0.0, -3.0], np.float32),
        "people": np.array([1, 3, 3]),
        "split": np.array([2, 1]),
        "side": np.array(44, np.float32),
        "margin": np.array(10, np.float32),
        "half": np.array([[[8, 18], [7, 14], [6, 12]]], np.float32),
        "most": np.array([3]),
        "overlap": np.array([0.45], np.float32),
        "column": np.array(2),
        "one_row": np.array([1, -1]),
    }
    steps: list[Step] = [
        ("ReduceMean", ["input", "spatial"], ["mean"], {"keepdims": 0}),
        ("MatMul", ["mean", "weights"], ["product"], {}),
        ("Add", ["product", "bias"], ["logits"], {}),
        ("Sigmoid", ["logits"], ["shares"], {}),
        ("Reshape", ["shares", "people"], ["each"], {}),
        ("Split", ["each", "split"], ["places", "confidence"], {"axis": 2}),
        ("Mul", ["places", "side"], ["spread"], {}),
        ("Add", ["spread", "margin"], ["centres"], {}),
        ("Sub", ["centres", "half"], ["first"], {}),
        ("Add", ["centres", "half"], ["last"], {}),
        ("Concat", ["first", "last"], ["boxes"], {"axis": 2}),
        ("Transpose", ["confidence"], ["scores"], {"perm": [0, 2, 1]}),
        ("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["selected"], {}),
        ("Gather", ["selected", "column"], ["kept"], {"axis": 1}),
        ("Concat", ["boxes", "confidence"], ["certain_boxes"], {"axis": 2}),
        ("Gather", ["certain_boxes", "kept"], ["dets"], {"axis": 1}),
        ("Sub", ["kept", "kept"], ["zeros"], {}),
        ("Reshape", ["zeros", "one_row"], ["labels"], {}),
    ]
    outputs: list[Output] = [
        ("dets", helper.TensorProto.FLOAT, [1, "boxes_kept", 5]),
        ("labels", helper.TensorProto.INT64, [1, "boxes_kept"]),
    ]
    return _network("detector", [1, 3, 64, 64], steps, constants, outputs)


def _pose() -> "onnx.ModelProto":
    from onnx import helper

    rng = np.random.default_rng(SEED)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(0, 1, shape).astype(np.float32)

    width, height, channels = 48, 64, 4
    constants: dict[str, np.ndarray] = {
        "mix": weights(36, NUM_KEYPOINTS * channels) / 6,
        "points": np.array([0, NUM_KEYPOINTS, channels]),
        "across": weights(channels, 2 * width),
        "down": weights(channels, 2 * height),
    }
    steps: list[Step] = [
        ("AveragePool", ["input"], ["pooled"], {"kernel_shape": [16, 16], "strides": [16, 16]}),
        ("Flatten", ["pooled"], ["features"], {}),
        ("MatMul", ["features", "mix"], ["mixed"], {}),
        ("Reshape", ["mixed", "points"], ["embedded"], {}),
        ("MatMul", ["embedded", "across"], ["x"], {}),
        ("MatMul", ["embedded", "down"], ["y"], {}),
        ("Sigmoid", ["x"], ["simcc_x"], {}),
        ("Sigmoid", ["y"], ["simcc_y"], {}),
    ]
    outputs: list[Output] = [
        (name, helper.TensorProto.FLOAT, ["batch", NUM_KEYPOINTS, 2 * side])
        for name, side in (("simcc_x", width), ("simcc_y", height))
    ]
    return _network("pose", ["batch", 3, height, width], steps, constants, outputs)


def _network(
    name: str,
    shape: list[int | str],
    steps: list[Step],
    constants: dict[str, np.ndarray],
    outputs: list[Output],
) -> "onnx.ModelProto":
    """Return a network of one input, "input", from its operations, in the order that they run."""
    from onnx import checker, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, made, **options) for kind, inputs, made, options in steps],
        name,
        [helper.make_tensor_value_info("input", helper.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, kind, sides) for output, kind, sides in outputs],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    return model
