"""A small vision-language model from scratch, given by a few numbers: LLaVA's own class with a small CLIP tower and a
small Llama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from anypolicy.policies.language.transformer import initialise
from anypolicy.policies.language.vision_lm import MARKER, VisionLM

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens."""
    known = [PAD, EOS, MARKER, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    own = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(known)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token=PAD, eos_token=EOS, extra_special_tokens=[MARKER])


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """The given words and punctuation marks as tokens; text comes back with single spaces between words."""
    known = dict.fromkeys([PAD, EOS, MARKER, UNKNOWN, *words])
    own = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token=UNKNOWN))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, extra_special_tokens=[MARKER]
    )


def small_vision_lm(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, heads: int, context_length: int, image: int,
    patch: int, seed: int,
) -> VisionLM:  # fmt: skip
    """Images are resized to `image` × `image` and cut into patches, each of which becomes one token of the text model.

    The text model and what leads to it are initialised as `small_transformer` is, the tower as CLIP is (there large
    embeddings of positions would drown the patches): from `seed` alone.
    """
    own: Any = tokenizer
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"height": image, "width": image}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        own, patch_size=patch, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip
    make: Any = LlavaConfig
    config = make(
        vision_config=CLIPVisionConfig(image_size=image, patch_size=patch, **shape),
        text_config=LlamaConfig(
            vocab_size=len(own), max_position_embeddings=context_length, pad_token_id=own.pad_token_id,
            eos_token_id=own.eos_token_id, bos_token_id=None, tie_word_embeddings=False, **shape,
        ),
        image_token_id=int(own.convert_tokens_to_ids(MARKER)), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=(image // patch) ** 2,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    text: Any = model.model
    for part in (text.language_model, text.multi_modal_projector, model.lm_head):
        initialise(part, seed)
    return VisionLM(model, processor, (int(own.eos_token_id),))
