"""Settings of the whole suite: one thread, one dtype policy, and property tests that repeat."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # sums in one order, and no quarrel between workers

hypothesis.settings.register_profile(
    "suite", derandomize=True, deadline=None, max_examples=30, database=None
)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def rng():
    """A seeded CPU generator, new for every test."""
    return torch.Generator().manual_seed(20)


@pytest.fixture
def global_state_untouched():
    """Fail a test that reads from or writes to torch's global random state."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state was touched"
