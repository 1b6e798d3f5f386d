import pytest
import torch
from torch.nn import functional

from factual_forgetting.protocol.data import IGNORE
from factual_forgetting.protocol.losses import cross_entropy, distillation, distilled_positions

VOCABULARY = 11


def random_batch(rows: int = 6, length: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, length, VOCABULARY, generator=generator)
    teacher = torch.randn(rows, length, VOCABULARY, generator=generator)
    attention = torch.ones(rows, length, dtype=torch.long)
    labels = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    labels[:, :3] = IGNORE
    for row in range(rows):
        cut = 5 + row % 3
        attention[row, cut:] = 0
        labels[row, cut:] = IGNORE
    return student, teacher, attention, labels, distilled_positions(attention, labels, "all")


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_distillation_is_torch_kl_div(tau: float) -> None:
    student, teacher, attention, _, marked = random_batch()
    count = marked.sum()
    ours = distillation(student, teacher, marked, tau, count)
    expected = torch.zeros(())
    for row in range(len(student)):
        for position in range(1, int(attention[row].sum())):
            q = functional.log_softmax(student[row, position - 1] / tau, dim=-1)
            p = functional.softmax(teacher[row, position - 1] / tau, dim=-1)
            expected += functional.kl_div(q, p, reduction="sum")
    assert torch.allclose(ours, tau**2 * expected / count, rtol=1e-5)
    assert ours > 0


def test_distillation_from_itself_is_zero_with_zero_gradient() -> None:
    student, _, _, _, marked = random_batch()
    student.requires_grad_(True)
    loss = distillation(student, student.detach().clone(), marked, 0.5, marked.sum())
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-7


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher, _, _, marked = random_batch()
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    distillation(student, teacher, marked, 1.0, marked.sum()).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("which", ["all", "answer"])
def test_the_loss_of_a_batch_is_the_sum_over_any_split(parts: int, which: str) -> None:
    student, teacher, attention, labels, _ = random_batch()
    tokens = (labels != IGNORE).sum()
    count = distilled_positions(attention, labels, which).sum()

    def loss(rows: slice) -> torch.Tensor:
        marked = distilled_positions(attention[rows], labels[rows], which)
        return cross_entropy(student[rows], labels[rows], tokens) + distillation(
            student[rows], teacher[rows], marked, 0.5, count
        )

    size = 6 // parts
    split = sum(loss(slice(start, start + size)) for start in range(0, 6, size))
    assert torch.allclose(torch.as_tensor(split), loss(slice(None)), rtol=1e-6)


def test_cross_entropy_is_the_mean_over_answer_and_eos() -> None:
    student, _, _, labels, _ = random_batch()
    tokens = (labels != IGNORE).sum()
    expected = functional.cross_entropy(
        student[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), ignore_index=IGNORE
    )
    assert torch.allclose(cross_entropy(student, labels, tokens), expected, rtol=1e-6)


def test_padding_never_counts() -> None:
    student, teacher, attention, _, marked = random_batch()
    before = distillation(student, teacher, marked, 1.0, marked.sum())
    # Logits that predict a pad are those at the position before it.
    student[:, :-1][attention[:, 1:] == 0] += 100.0
    assert torch.equal(before, distillation(student, teacher, marked, 1.0, marked.sum()))


def test_a_pad_that_is_eos_is_told_from_an_eos_that_is_not() -> None:
    eos = 2
    ids = torch.tensor([[5, 6, 7, eos, eos, eos]])
    attention = torch.tensor([[1, 1, 1, 1, 0, 0]])
    labels = torch.where(attention.bool() & (torch.arange(6) >= 2), ids, IGNORE)
    for which, marks in (("all", [0, 1, 1, 1, 0, 0]), ("answer", [0, 0, 1, 1, 0, 0])):
        assert distilled_positions(attention, labels, which).int().tolist() == [marks]


def test_vocabularies_must_agree() -> None:
    student, teacher, _, _, marked = random_batch()
    with pytest.raises(ValueError, match="vocabularies differ: 11 and 10"):
        distillation(student, teacher[..., :10], marked, 1.0, marked.sum())
