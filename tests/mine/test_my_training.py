"""Your loader, schedule and optimizer."""

import pytest
import torch
from mine_parts import build, mine, part  # noqa: F401


@pytest.fixture
def loader(mine):
    """The learner's loader over the numbers 0 to 100, in rows of 2 × 5."""
    Loader = part(mine, "DataLoaderLite", "TokenLoader")
    try:
        return Loader(torch.arange(101), 2, 5)
    except Exception as error:
        pytest.fail(f"{Loader.__name__}(tokens, 2, 5) on 101 tokens: {error}")


def test_targets_are_the_inputs_one_token_later(loader):
    x, y = loader.next_batch()
    shapes = tuple(x.shape), tuple(y.shape)
    assert shapes == ((2, 5), (2, 5)), f"x and y should both be (2, 5); yours are {shapes}"
    assert torch.equal(y, x + 1), "the tokens count up, so each target must be its input plus 1"


def test_an_epoch_reads_every_window_once(loader):
    seen = torch.cat([loader.next_batch()[0].flatten() for _ in range(10)]).tolist()
    missing = sorted(set(range(100)) - set(seen))
    assert not missing, f"10 batches of 10 from 100 tokens never read {missing[:5]} …"
    assert len(set(seen)) == len(seen), "a token was read twice in one epoch"


def test_it_starts_again_at_the_end(loader):
    for number in range(25):
        try:
            x, y = loader.next_batch()
        except Exception as error:
            pytest.fail(f"batch {number}, past the end of the data: {error}. Start again")
        assert torch.equal(y, x + 1), f"batch {number}: targets no longer follow their inputs"


@pytest.fixture
def rate(mine):
    """The learner's schedule as a function of the step alone."""
    function = part(mine, "learning_rate_at", "get_lr")
    lecture = dict(max_lr=6e-4, min_lr=6e-5, warmup_steps=715, max_steps=19073)
    try:
        function(0)
    except TypeError:
        return lambda step: function(step, **lecture)
    return function


def test_the_learning_rate_warms_up_peaks_and_decays(rate):
    assert rate(0) > 0, "with a rate of 0 the first step is wasted"
    assert rate(0) < 2e-6, f"the first of 715 warm-up steps has 6e-4 / 715; yours {rate(0):.1e}"
    assert rate(714) == pytest.approx(6e-4, rel=1e-3), f"the peak is 6e-4, yours {rate(714):.1e}"
    middle = rate((715 + 19073) // 2)
    assert middle == pytest.approx(3.3e-4, rel=1e-2), f"half-way: 3.3e-4, yours {middle:.2e}"
    assert rate(19073) == pytest.approx(6e-5, rel=1e-2), f"the end: 6e-5, yours {rate(19073):.1e}"
    assert rate(30000) == pytest.approx(6e-5, rel=1e-2), "after the end it stays at 6e-5"


@pytest.fixture
def optimizer(mine, build):
    """The learner's optimizer for a model."""
    model = build()
    if hasattr(model, "configure_optimizers"):
        return model, model.configure_optimizers(weight_decay=0.1, learning_rate=1e-3)
    function = part(mine, "make_optimizer")
    try:
        return model, function(model, learning_rate=1e-3, weight_decay=0.1)
    except TypeError:
        return model, function(model)


def test_only_matrices_decay(optimizer):
    model, made = optimizer
    decay = {p: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    left = [name for name, p in model.named_parameters() if p not in decay]
    assert not left, f"the optimizer does not know {', '.join(left[:3])}"
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            assert decay[p] > 0, f"{name} is a matrix and should decay"
        else:
            assert decay[p] == 0, f"{name} is a bias or a norm and should not decay"


def test_its_constants_are_gpt3s(optimizer):
    group = optimizer[1].param_groups[0]
    betas = tuple(group.get("betas", ()))
    assert betas == (0.9, 0.95), f"betas (0.9, 0.95) in GPT-3's appendix B; yours {betas}"
    assert group["eps"] == 1e-8, f"epsilon 1e-8; yours {group['eps']}"
