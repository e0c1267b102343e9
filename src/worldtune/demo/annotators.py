"""Tiny networks of the annotators' own classes, with random weights, in the layout of the hub.

They annotate nothing sensible; they run the same code and write the same files as the released ones.
"""

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertTokenizerFast,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
)

from worldtune.annotate.sam2_package import OVERRIDES_FILE, build_predictor, read_overrides
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json
from worldtune.demo.vision_language import write_vision_language_model
from worldtune.formats.keypoints import NUM_KEYPOINTS

if TYPE_CHECKING:
    import onnx

SEED = 0
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OPSET, IR_VERSION = 18, 8
"""Versions of ONNX that every onnxruntime of the last years reads."""

Step = tuple[str, list[str], list[str], dict[str, Any]]
"""An operation of a network: kind, inputs, outputs, options."""
Output = tuple[str, int, list[int | str]]
"""An output of a network: name, type, shape."""


def make_annotators(checkpoints: Path) -> Path:
    """Write a tiny network for each annotator and a captioner; returns their folder, worldtune/demo-annotators.

    Args:
        checkpoints: folder of all checkpoints; made where it is not there.

    Raises:
        WorldtuneError: `checkpoints` is a file.
    """
    if checkpoints.exists() and not checkpoints.is_dir():
        raise WorldtuneError(f"--checkpoints {checkpoints} is a file; expected a folder. Name another one.")
    folder = checkpoints / "worldtune/demo-annotators"
    write_depth_network(folder / "depth")
    write_detector(folder / "detector")
    write_tracker(folder / "tracker")
    write_keypoint_networks(folder / "keypoint", "detector.onnx", "pose.onnx")
    write_vision_language_model(folder / "captioner", seed=SEED)
    return folder


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
    processor = DPTImageProcessorPil(
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


def write_detector(folder: Path) -> None:
    """Write a GroundingDINO network of 0.3 million parameters, its tokenizer and its image processor to `folder`.

    The tokenizer knows letters and numbers; the network wants pictures of 128 pixels and two decoder layers at least.
    """
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*BERT_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    tokenizer = BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})
    backbone = SwinConfig(
        image_size=128,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=12,
        encoder_layers=1,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=64,
        decoder_attention_heads=2,
        d_model=32,
    )
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 256}), tokenizer
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_tracker(folder: Path) -> None:
    """Write a SAM2 network of 0.4 million parameters to `folder`, as transformers has it."""
    backbone = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=128,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": 128},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 64},
        image_size=128,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        Sam2VideoModel(config).save_pretrained(folder)


PACKAGE_NETWORK = "sam2_hiera_tiny.pt"
PACKAGE_OVERRIDES: dict[str, int | list[int] | list[list[int]]] = {
    "model.image_size": 128,
    "model.image_encoder.trunk.embed_dim": 16,
    "model.image_encoder.trunk.num_heads": 1,
    "model.image_encoder.trunk.stages": [1, 1, 2, 1],
    "model.image_encoder.trunk.global_att_blocks": [3],
    "model.image_encoder.trunk.window_spec": [8, 4, 8, 4],
    "model.image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
    "model.memory_attention.num_layers": 1,
    "model.memory_attention.layer.self_attention.feat_sizes": [8, 8],
    "model.memory_attention.layer.cross_attention.feat_sizes": [8, 8],
}
"""What makes sam2_hiera_tiny small: in the first block of a stage no attention may be global."""


def write_package_tracker(folder: Path) -> None:
    """Write a SAM2 network of 7.7 million parameters to `folder`, as the package sam2 has it.

    Raises:
        WorldtuneError: sam2, which is an optional extra, is not installed.
    """
    write_json(folder / OVERRIDES_FILE, PACKAGE_OVERRIDES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_predictor(PACKAGE_NETWORK, None, "cpu", read_overrides(folder))
    torch.save({"model": model.state_dict()}, folder / PACKAGE_NETWORK)


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
