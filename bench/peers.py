"""Masked autoencoders of equal shape from several hands, each as a function that runs one training step.

`PEERS` maps a row's name to what makes it. The kit takes pictures in 0..1 and normalises their colours inside
the step; the others are handed pictures that are normalised already. Each draws its own random mask of 75 %,
and predicts normalised patches.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    "What all rows of one table share; pictures of 224 pixels, patches of 16."
    name: str
    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    batch: int
    ratio: float = .75

    @property
    def label(self) -> str:
        encoder, decoder = f'{self.dim} x {self.depth}', f'{self.decoder_dim} x {self.decoder_depth}'
        return f'{encoder}, decoder {decoder}, batch {self.batch}'


SHAPES = {s.name: s for s in (
    Shape('tiny', 192, 12, 3, 128, 4, 4, 16),
    Shape('small', 384, 12, 6, 256, 4, 8, 8),
    Shape('base', 768, 12, 12, 512, 8, 16, 4))}


# ------------------------------------------------------------------------------------------------------------
# ------ the kit


def kit(shape: Shape) -> nn.Module:
    from maskedlab.masks.strategies import Random
    from maskedlab.recipes.image.mae import MAE
    return MAE(224, 16, 3, shape.dim, shape.depth, shape.heads, shape.decoder_dim, shape.decoder_depth,
               shape.decoder_heads,
               strategy=Random(shape.ratio, law='floor kept'))


# ------------------------------------------------------------------------------------------- written as the
# original code works


class Attention(nn.Module):
    "The weights in full: product, scale, softmax, product."
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp = Attention(dim,
                                        heads), nn.ModuleDict(dict(fc1=nn.Linear(dim, 4 * dim),
                                                                   fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp['fc2'](nn.functional.gelu(self.mlp['fc1'](self.norm2(x))))


class Original(nn.Module):
    """The method as its released code computes it, written from the paper's card: a convolution embeds all
    patches, noise is sorted twice, gathers take an index that is repeated over the width, the head predicts
    every patch, and the loss is masked. Its state has the original names, so that a checkpoint of the
    original layout loads."""
    def __init__(self, shape: Shape):
        super().__init__()
        d, w = shape.dim, shape.decoder_dim
        self.ratio = shape.ratio
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, d, 16, 16)))
        self.cls_token, self.mask_token = nn.Parameter(torch.randn(1, 1, d) * .02), nn.Parameter(
            torch.randn(1, 1, w) * .02)
        self.pos_embed = nn.Parameter(torch.randn(1, 197, d) * .5, requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, 197, w) * .5, requires_grad=False)
        self.blocks = nn.ModuleList(Block(d, shape.heads) for _ in range(shape.depth))
        self.decoder_blocks = nn.ModuleList(Block(w, shape.decoder_heads) for _ in range(shape.decoder_depth))
        self.norm, self.decoder_norm = nn.LayerNorm(d, 1e-6), nn.LayerNorm(w, 1e-6)
        self.decoder_embed, self.decoder_pred = nn.Linear(d, w), nn.Linear(w, 768)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        B = len(image)
        x = self.patch_embed['proj'](image).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        N, D = x.shape[1:]
        kept = int(N * (1 - self.ratio))
        shuffle = (torch.rand(B, N, device=x.device) if noise is None else noise).argsort(1)
        back = shuffle.argsort(1)
        x = x.gather(1, shuffle[:, :kept].unsqueeze(-1).repeat(1, 1, D))
        mask = torch.ones(B, N, device=x.device)
        mask[:, :kept] = 0
        mask = mask.gather(1, back)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        y = torch.cat([x[:, 1:], self.mask_token.repeat(B, N - kept, 1)], 1)
        y = y.gather(1, back.unsqueeze(-1).repeat(1, 1, y.shape[2]))
        y = torch.cat([x[:, :1], y], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            y = block(y)
        pred = self.decoder_pred(self.decoder_norm(y))[:, 1:]
        target = torch.einsum('bchpwq->bhwpqc', image.reshape(B, 3, 14, 16, 14, 16)).reshape(B, N, 768)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** .5
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


# ------------------------------------------------------------------------------------------------------------
# ------ libraries


def transformers(shape: Shape, attention: str = 'sdpa') -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    config = ViTMAEConfig(
        hidden_size=shape.dim, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.dim,
        decoder_hidden_size=shape.decoder_dim, decoder_num_hidden_layers=shape.decoder_depth,
        decoder_num_attention_heads=shape.decoder_heads, decoder_intermediate_size=4 * shape.decoder_dim,
        mask_ratio=shape.ratio, norm_pix_loss=True, layer_norm_eps=1e-6)
    return ViTMAEForPreTraining._from_config(config, attn_implementation=attention)


class Lightly(nn.Module):
    "Lightly's parts, put together as its documentation of MAE describes: only hidden patches are predicted."
    def __init__(self, shape: Shape):
        super().__init__()
        with contextlib.redirect_stderr(io.StringIO()):
            from lightly.models import utils
            from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer
        vit = VisionTransformer(224, 16, num_classes=0, embed_dim=shape.dim, depth=shape.depth,
                                num_heads=shape.heads, global_pool='')
        self.utils, self.ratio = utils, shape.ratio
        self.encoder = MaskedVisionTransformerTIMM(vit)
        self.embed, self.head = nn.Linear(shape.dim, shape.decoder_dim), nn.Linear(shape.decoder_dim, 768)
        self.decoder = MaskedVisionTransformerDecoderTIMM(196, shape.decoder_dim, shape.decoder_depth,
                                                          shape.decoder_heads)

    def forward(self, image: Tensor) -> Tensor:
        size = (len(image), 197)
        keep, hide = self.utils.random_token_mask(size, self.ratio, device=image.device)
        seen = self.embed(self.encoder.encode(image, idx_keep=keep))
        tokens = self.utils.repeat_token(self.decoder.mask_token, size)
        tokens = self.utils.set_at_index(tokens, keep, seen.to(tokens.dtype))    # which differ under autocast
        pred = self.head(self.utils.get_at_index(self.decoder(tokens), hide))
        target = self.utils.get_at_index(self.utils.patchify(image, 16), hide - 1)
        return nn.functional.mse_loss(pred, self.utils.normalize_mean_var(target))


# ------------------------------------------------------------------------------------------------------------
# ------ the table


@dataclass(frozen=True)
class Peer:
    build: Callable[[Shape], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    needs: tuple[str, ...] = ()          # packages
    imports: str = 'pass'                # what its process imports before memory is counted

    @property
    def missing(self) -> list[str]:
        return [n for n in self.needs if find_spec(n) is None]


call: Callable[[Any, Tensor], Tensor] = lambda model, image: model(image)
loss_of: Callable[[Any, Tensor], Tensor] = lambda model, image: model(image).loss

PEERS: dict[str, Peer] = {
    'maskedlab': Peer(kit, lambda model, image: model({'image': image}).loss,
                      imports='import maskedlab.recipes.image.mae'),
    'transformers, sdpa': Peer(transformers, loss_of, ('transformers',),
                               'from transformers import ViTMAEForPreTraining'),
    'transformers, eager': Peer(partial(transformers, attention='eager'), loss_of, ('transformers',),
                                'from transformers import ViTMAEForPreTraining'),
    'lightly': Peer(Lightly, call, ('lightly', 'timm'),
                    'import lightly.models.modules, timm.models.vision_transformer'),
    "the original's way": Peer(Original, call),
}
OURS = 'maskedlab'


def training_step(name: str, shape: Shape, optimiser: str = 'adamw', device: str = 'cpu', bf16: bool = False,
                  compiled: bool = False,
                  fused: bool = True) -> Callable[[], Tensor]:
    "A function that runs one step: forward, backward and, where it is asked for, AdamW."
    torch.manual_seed(0)
    peer = PEERS[name]
    model: Any = peer.build(shape).to(device).train()
    image = torch.rand(shape.batch, 3, 224, 224).to(device)
    if name != OURS:
        image = (image - .45) / .225
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, (.9, .95),
                            weight_decay=.05, fused=fused)
    if compiled and name == OURS:        # as its Trainer does; the others as a whole
        from maskedlab.train.step import compile_blocks
        compile_blocks(model)
    run = torch.compile(model) if compiled and name != OURS else model

    def step() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            loss = peer.loss(run, image)
        loss.backward()
        if optimiser == 'adamw':
            opt.step()
        opt.zero_grad(set_to_none=True)
        return loss
    return step


def ready() -> None:
    """Load what torch loads at its first product, its first gradient and its first optimiser, so that it
    counts among the imports."""
    layer = nn.Linear(8, 8)
    opt = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.rand(8, 8)).sum().backward()
    opt.step()


def counted(name: str, shape: Shape) -> int:
    "Floating-point operations of one step, forward and backward."
    from maskedlab.instruments.measure import flops
    return flops(training_step(name, shape, optimiser='none'))


def smaller(shape: Shape, **changes: Any) -> Shape:
    "The same table with some numbers exchanged, for a rehearsal."
    return replace(shape, **changes)
