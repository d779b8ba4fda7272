"""Tiny random pipelines of diffusers, made on the spot: text encoders, tokenizers and decoders without a hub."""

import string
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram

from limbeck.rng import seeded

LENGTH = 24
"""Tokens that a text encoder reads."""

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
TABLE = {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}


def clip_tokenizer() -> Any:
    """Letters as tokens."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in string.ascii_lowercase:
        vocab |= {letter: len(vocab), f"{letter}</w>": len(vocab) + 1}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


def clip(kind: str = "CLIPTextModel") -> Any:
    """A text encoder of width 16."""
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return getattr(transformers, kind)(config).eval()


def t5_tokenizer() -> Any:
    """Letters as tokens."""
    letters = [(letter, -3.0) for letter in string.ascii_lowercase]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return transformers.T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=LENGTH)


def t5(width: int = 16) -> Any:
    """A text encoder."""
    config = transformers.T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def vae(channels: int = 4, **scale: float) -> Any:
    """A decoder that doubles height and width."""
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        sample_size=16,
        **scale,
    ).eval()


def text_unet(**settings: Any) -> Any:
    """A U-Net of latents [B, 4, 8, 8] and texts."""
    return diffusers.UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 8,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            **settings,
        }
    )


def stable_diffusion(folder: Path, **scheduler: Any) -> Any:
    """Texts by cross-attention, a table of noise levels."""
    with seeded("stable diffusion"):
        pipeline = diffusers.StableDiffusionPipeline(
            vae=vae(scaling_factor=0.2),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            unet=text_unet(),
            scheduler=diffusers.DDIMScheduler(**TABLE, **scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion_xl(folder: Path) -> Any:
    """Texts by cross-attention, and the size of the image."""
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
        "cross_attention_dim": 32,
    }
    with seeded("stable diffusion xl"):
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=vae(scaling_factor=0.2),
            text_encoder=clip(),
            text_encoder_2=clip("CLIPTextModelWithProjection"),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            unet=text_unet(**more),
            scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion_3(folder: Path, **scheduler: Any) -> Any:
    """Texts beside the image, a shifted flow."""
    with seeded("stable diffusion 3"):
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            **HEADS,
        )
        pipeline = diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            vae=vae(scaling_factor=0.3, shift_factor=0.1),
            text_encoder=clip("CLIPTextModelWithProjection"),
            text_encoder_2=clip("CLIPTextModelWithProjection"),
            text_encoder_3=t5(32),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return pipeline


def flux(folder: Path, **settings: Any) -> Any:
    """Packed latents, texts beside the image, a flow whose shift depends on the size."""
    with seeded("flux"):
        pipeline = diffusers.FluxPipeline(
            transformer=flux_transformer(**settings),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae(scaling_factor=0.3, shift_factor=0.1),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return pipeline


def flux_transformer(**settings: Any) -> Any:
    """A network of packed latents [B, L, 16]."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        **settings,
    )


def pixart(folder: Path) -> Any:
    """Texts with a mask."""
    with seeded("pixart"):
        transformer = diffusers.PixArtTransformer2DModel(
            in_channels=4,
            out_channels=8,
            sample_size=8,
            cross_attention_dim=16,
            caption_channels=16,
            use_additional_conditions=False,
            **HEADS,
        )
        pipeline = diffusers.PixArtAlphaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5(),
            vae=vae(scaling_factor=0.2),
            transformer=transformer,
            scheduler=diffusers.DPMSolverMultistepScheduler(),
        )
    pipeline.save_pretrained(folder)
    return pipeline


def dit(folder: Path) -> Any:
    """Classes, and one more for none."""
    with seeded("dit"):
        transformer = diffusers.DiTTransformer2DModel(
            in_channels=4, out_channels=8, sample_size=8, patch_size=2, num_embeds_ada_norm=5, **HEADS
        )
        for name, value in transformer.named_parameters():  # they begin at 0, and would not hear the class
            if "norm1.linear" in name or "proj_out" in name:
                torch.nn.init.normal_(value, std=0.2)
        pipeline = diffusers.DiTPipeline(transformer, vae(scaling_factor=0.2), diffusers.DDIMScheduler(**TABLE))
    pipeline.save_pretrained(folder)
    return pipeline


def sana(folder: Path) -> Any:
    """Texts behind an instruction, with a mask; a flow of a scheduler with a table."""
    letters = [(letter, -3.0) for letter in string.ascii_letters]
    special = [("<pad>", 0.0), ("<eos>", 0.0), ("<bos>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    backend = Tokenizer(Unigram([*special, *letters], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    config = transformers.Gemma2Config(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("block_types", blocks),
            ("block_out_channels", (8, 8)),
            ("qkv_multiscales", ((), (5,))),
            ("layers_per_block", (1, 1)),
        )
    }
    with seeded("sana"):
        pipeline = diffusers.SanaPipeline(
            tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names),
            text_encoder=transformers.Gemma2Model(config).eval(),
            vae=diffusers.AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                scaling_factor=0.4,
                **sides,
            ).eval(),
            transformer=diffusers.SanaTransformer2DModel(
                sample_size=16,  # its pipeline makes images of multiples of 32 alone
                in_channels=4,
                out_channels=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=16,
                patch_size=1,
                timestep_scale=0.5,
                **HEADS,
            ),
            scheduler=diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    pipeline.save_pretrained(folder)
    return pipeline
