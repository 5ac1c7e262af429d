"""fuse() on small models of transformers, made from configurations. Nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

pytest.importorskip("transformers")

from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from tests.fuse.fuse_models import assert_fuses_to_the_same, images, made


def configured(model: Any, config: Any, **options: Any) -> nn.Module:
    return model(config(**options))


def resnet(layer_type: str, hidden_act: str = "relu") -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "num_labels": 5}
    kind = {"layer_type": layer_type, "hidden_act": hidden_act}
    return configured(ResNetForImageClassification, ResNetConfig, **sizes, **kind)


def regnet(layer_type: str) -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 8}
    return configured(RegNetForImageClassification, RegNetConfig, **sizes, layer_type=layer_type)


def mobilenet() -> nn.Module:
    return configured(MobileNetV2ForImageClassification, MobileNetV2Config, depth_multiplier=0.25)


def segformer() -> nn.Module:
    encoder = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    patches = {"num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    options = {**encoder, **patches, "decoder_hidden_size": 8}
    return configured(SegformerForSemanticSegmentation, SegformerConfig, **options)


def upernet() -> nn.Module:
    stages = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "embedding_size": 8, "layer_type": "basic"}
    make_backbone: Any = ResNetConfig
    backbone = make_backbone(**stages, out_features=[f"stage{number}" for number in (1, 2, 3, 4)])
    auxiliary = {"auxiliary_in_channels": 16, "auxiliary_channels": 8, "auxiliary_num_convs": 1}
    options = {"backbone_config": backbone, "hidden_size": 8, "pool_scales": [1, 2], **auxiliary}
    return configured(UperNetForSemanticSegmentation, UperNetConfig, **options)


@pytest.mark.parametrize(
    ("make", "fused", "count", "sums"),
    [
        pytest.param(lambda: resnet("bottleneck"), 13, 14, 4, id="ResNet, bottlenecks"),
        pytest.param(lambda: resnet("basic", "gelu"), 9, 10, 4, id="ResNet, basic blocks, GELU"),
        pytest.param(lambda: regnet("x"), 10, 12, 3, id="RegNet X"),
        pytest.param(lambda: regnet("y"), 10, 12, 3, id="RegNet Y"),
        pytest.param(mobilenet, 45, 52, 10, id="MobileNetV2"),
        pytest.param(segformer, 1, 1, 0, id="SegFormer"),
        pytest.param(upernet, 20, 23, 4, id="UPerNet on ResNet"),
    ],
)
def test_models_compute_the_same_and_are_fused(
    make: Callable[[], nn.Module], fused: int, count: int, sums: int
) -> None:
    """Norms that are not fused precede a convolution, or are the residual of a fused norm."""
    report = assert_fuses_to_the_same(made(make), images(2, 3, 32, 32))
    assert (len(report.fused), len(report.norms)) == (fused, count)
    assert sum("add" in norm.fused[0] for norm in report.fused) == sums
    assert all(norm.replaced for norm in report.norms)
