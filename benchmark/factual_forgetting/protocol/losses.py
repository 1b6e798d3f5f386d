"""The two terms of the loss, as pure functions of logits.

Each divides by a count over the whole optimizer step, over all devices and accumulation, so
the sum over any split of a batch is the loss of the batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from factual_forgetting.protocol.data import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy: the sum over this batch's answer and EOS tokens, divided by `tokens`.

    Args:
        logits: Shape (batch, length, vocabulary).
        labels: Shape (batch, length); `IGNORE` outside answer and EOS.
        tokens: Number of answer and EOS tokens in the whole step.
    """
    targets = labels[:, 1:]
    kept = targets != IGNORE  # only these go through the softmax
    chosen = logits[:, :-1][kept].float()
    return functional.cross_entropy(chosen, targets[kept], reduction="sum") / tokens


def distillation(
    student: Tensor,
    teacher: Tensor,
    positions: Tensor,
    tau: float,
    count: Tensor,
    direction: str = "forward",
) -> Tensor:
    """`tau^2 * KL(p_teacher^tau || p_student^tau)`, summed over this batch and divided by `count`.

    Source: Kaplan et al. 2026 (arXiv 2604.15574), self-distillation.

    Args:
        student: Logits, shape (batch, length, vocabulary).
        teacher: Logits of the same shape; no gradient flows into them.
        positions: Boolean, shape (batch, length): the tokens whose prediction counts; never the
            first of a sequence, which nothing predicts.
        tau: Temperature; below 1 it sharpens.
        count: Number of counted positions in the whole step.
        direction: `forward` as above, or `reverse`: KL(p_student^tau || p_teacher^tau).

    Raises:
        ValueError: If the vocabularies differ in size.
    """
    kept = positions[:, 1:]
    chosen, taught = student[:, :-1][kept], teacher[:, :-1][kept]
    return kl_divergence(chosen, taught, tau, direction) / count


def kl_divergence(student: Tensor, teacher: Tensor, tau: float, direction: str) -> Tensor:
    """`tau^2 * KL` summed over rows of logits, shape (positions, vocabulary).

    Raises:
        ValueError: If the vocabularies differ in size.
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(f"vocabularies differ: {student.shape[-1]} and {teacher.shape[-1]}")
    log_student = functional.log_softmax(student.float() / tau, dim=-1)
    log_teacher = functional.log_softmax(teacher.detach().float() / tau, dim=-1)
    if direction == "reverse":
        log_student, log_teacher = log_teacher, log_student
    kl = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return tau**2 * kl


def distilled_positions(attention: Tensor, labels: Tensor, which: str) -> Tensor:
    """Marks the tokens whose prediction is distilled: boolean, shape (batch, length).

    Args:
        attention: Attention mask, shape (batch, length); pads are 0 even if pad is EOS.
        labels: As in `cross_entropy`.
        which: `all` tokens that are no pads, or `answer` tokens and EOS only.
    """
    marked = attention != 0 if which == "all" else labels != IGNORE
    marked[:, 0] = False
    return marked


def answer_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the logits that predict the answers' tokens, without EOS: (tokens, vocabulary).

    Logits and labels are as in `cross_entropy`; a row's last label is EOS.
    """
    predicted = labels[:, 1:] != IGNORE
    last = predicted.cumsum(dim=1) == predicted.sum(dim=1, keepdim=True)
    return logits[:, :-1][predicted & ~last]
