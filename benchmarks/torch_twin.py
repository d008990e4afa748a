"""The benchmark's field once more in PyTorch, with fused attention and the same weights, for torchdiffeq."""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]


class TorchField(torch.nn.Module):
    """`Attn(LN u) + FFN(LN u)` on `(batch, n, d)`; `forward(t, u)` as torchdiffeq calls it."""

    def __init__(self, equation, gradients: bool = False):
        super().__init__()
        attention, reaction = equation.interaction, equation.reaction
        d, self.heads, self.head_dim = attention.wq.shape

        def parameter(x, shape=None):
            tensor = torch.tensor(np.asarray(x, np.float32).reshape(shape or np.shape(x)))
            return torch.nn.Parameter(tensor, requires_grad=gradients)

        self.qkv = torch.nn.ParameterList([parameter(w, (d, d)) for w in (attention.wq, attention.wk, attention.wv)])
        self.out = parameter(attention.wo, (d, d))
        self.w1, self.b1 = parameter(reaction.w1), parameter(reaction.b1)
        self.w2, self.b2 = parameter(reaction.w2), parameter(reaction.b2)
        self.norms = torch.nn.ParameterList(
            [parameter(x) for norm in (attention.norm, reaction.norm) for x in (norm.scale, norm.bias)]
        )
        self.eps = attention.norm.eps

    def forward(self, t, u):
        batch, n, d = u.shape
        x = F.layer_norm(u, (d,), self.norms[0], self.norms[1], self.eps)
        q, k, v = ((x @ w).view(batch, n, self.heads, self.head_dim).transpose(1, 2) for w in self.qkv)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, d)
        y = F.layer_norm(u, (d,), self.norms[2], self.norms[3], self.eps)
        return mixed @ self.out + F.gelu(y @ self.w1 + self.b1) @ self.w2 + self.b2
