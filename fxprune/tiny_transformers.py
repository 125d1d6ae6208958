"""Models of transformers in tiny configurations, with random weights: nothing is downloaded.

The architectures are whole; only widths, depths and vocabularies are small. Arguments of a `ModelSpec` are
those of the configuration, so that any size can be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_DECODER = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 32} | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("attention_heads", 2), ("ffn_dim", 64))
}
_IMAGE = {"image_size": 32, "patch_size": 8}
_TEXT = {"vocab_size": 99, "max_position_embeddings": 32}


@dataclass(frozen=True)
class Tiny:
    """A class of transformers and what its configuration is given.

    Attributes:
        model: name of the class.
        config: arguments of its configuration.
        shape: one sample of its main input: an image, token numbers, audio samples, or a spectrogram.
    """

    model: str
    config: dict[str, Any]
    shape: tuple[int, ...]


TINY = {
    "bert": Tiny("BertForSequenceClassification", _ENCODER | _TEXT, (12,)),
    "clip": Tiny(
        "CLIPModel",
        {"text_config": _ENCODER | _TEXT, "vision_config": _ENCODER | _IMAGE, "projection_dim": 16},
        (3, 32, 32),
    ),
    "convnext": Tiny(
        "ConvNextForImageClassification", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, (3, 64, 64)
    ),
    "deit": Tiny("DeiTForImageClassification", _ENCODER | _IMAGE, (3, 32, 32)),
    "detr": Tiny(
        "DetrForObjectDetection",
        _DECODER
        | {
            "num_queries": 6,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 24, 32],
                "depths": [1, 1, 2, 1],
                "out_features": ["stage4"],
            },
        },
        (3, 64, 64),
    ),
    "distilbert": Tiny(
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64} | _TEXT,
        (12,),
    ),
    "gpt2": Tiny(
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 99, "use_cache": False},
        (12,),
    ),
    "segformer": Tiny(
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32}
        | {"num_attention_heads": [1, 1, 2, 2]},
        (3, 64, 64),
    ),
    "swin": Tiny(
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        (3, 32, 32),
    ),
    "vit": Tiny("ViTForImageClassification", _ENCODER | _IMAGE, (3, 32, 32)),
    "wav2vec2": Tiny(
        "Wav2Vec2ForSequenceClassification",
        _ENCODER
        | {"conv_dim": [16, 16, 16], "conv_kernel": [8, 4, 4], "conv_stride": [4, 2, 2], "vocab_size": 32}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16},
        (800,),
    ),
    "whisper": Tiny(
        "WhisperForConditionalGeneration",
        _DECODER
        | {"vocab_size": 99, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16}
        | {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
            "use_cache": False,
        },
        (16, 40),
    ),
}


def build_tiny(name: str, config: dict[str, Any], num_classes: int | None) -> nn.Module:
    """Build the model of that name, with entries of its configuration replaced.

    Raises:
        ImportError: transformers is not installed.
        KeyError: there is no such name.
    """
    import transformers

    tiny = TINY[name]
    if num_classes is not None:
        config = {"num_labels": num_classes, **config}
    model = getattr(transformers, tiny.model)
    module: nn.Module = model(model.config_class(**{**tiny.config, **config}))
    return module
