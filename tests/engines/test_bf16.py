import subprocess
import sys

# In a process of its own: the kernels of this one stay as they are.
CHECK = """
import warnings
warnings.simplefilter("error")
import torch
from factual_forgetting.engines.models import widen_products

torch.manual_seed(0)
a, b, c = torch.randn(24, 40), torch.randn(40, 24), torch.randn(24, 24)

def results(dtype):
    x, y, z = (given.to(dtype, copy=True).requires_grad_() for given in (a, b, c))
    made = [x @ y, torch.addmm(z, x, y, beta=2, alpha=3), torch.nn.functional.linear(x, y.T, z[0])]
    made += [torch.bmm(x[None], y[None])[0], torch.baddbmm(z[None], x[None], y[None], beta=2)[0]]
    sum(product.square().mean() for product in made).backward()
    return [*made, x.grad, y.grad, z.grad]

native, exact = results(torch.bfloat16), results(torch.float32)
widen_products()
widened, still_exact = results(torch.bfloat16), results(torch.float32)
rounded = [x.bfloat16().float() for x in (a, b)]
assert torch.equal(widened[0], (rounded[0] @ rounded[1]).bfloat16())
for one, other in zip(exact, still_exact, strict=True):
    assert torch.equal(one, other)
for one, other in zip(native, widened, strict=True):
    assert other.dtype is torch.bfloat16
    torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7 * float(one.detach().abs().max()))
"""


def test_widened_products_are_those_of_bf16_instructions() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
