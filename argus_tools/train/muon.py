"""Muon for the matrices inside the layers, AdamW for all else, as one optimizer that the Trainer saves and resumes.

Muon (https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest orthogonal one, so that
all directions of a layer learn alike. Scaled as in arXiv 2502.16982, one learning rate serves both. torch.optim.Muon
takes matrices alone and one after the other; small models on a CPU need them in batches.
"""

import torch

# The quintic Newton-Schulz iteration of the reference: singular values go to about 1, and fast rather than exactly.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `"muon": True`, of matrices [out, in], are stepped by Muon with Nesterov momentum.

    A Muon step has 0.2 of the learning rate as the root mean square of its elements, which is about what AdamW's have.

    Raises:
        ValueError: something other than a matrix in a group of Muon.
    """

    def __init__(self, groups: list[dict], **options):
        for group in groups:
            for parameter in group["params"] if group.setdefault("muon", False) else ():
                if parameter.ndim != 2:
                    raise ValueError(f"Muon steps matrices, got a parameter of shape {tuple(parameter.shape)}.")
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        waiting = []
        for group in self.param_groups:
            if group["muon"]:
                stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
                for shape in sorted({tuple(parameter.shape) for parameter in stepped}):
                    self._step_alike([p for p in stepped if p.shape == shape], group["lr"], group["weight_decay"])
                waiting += [(parameter, parameter.grad) for parameter in stepped]
        try:
            for parameter, _ in waiting:
                parameter.grad = None  # AdamW steps what has a gradient
            super().step()
        finally:
            for parameter, gradient in waiting:
                parameter.grad = gradient
        return loss

    def _step_alike(self, parameters: list[torch.Tensor], rate: float, decay: float) -> None:
        """One step of matrices of one shape."""
        gradients = [parameter.grad.float() for parameter in parameters]
        momenta = []
        for parameter, gradient in zip(parameters, gradients):
            state = self.state[parameter]
            if not state:  # AdamW's own loading of states wants every parameter's number of steps
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(gradient)}
            state["step"] += 1
            momenta.append(state["momentum"])
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        directions = orthogonalised(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
        torch._foreach_mul_(parameters, 1 - rate * decay)
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, list(directions.to(parameters[0].dtype)), alpha=-rate * scale)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """float32[N, R, C] -> the same with singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
