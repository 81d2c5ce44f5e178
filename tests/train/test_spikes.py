"""Which losses stand out: by hand."""

from suri.train.spikes import LAST, Spikes


def after(losses):
    spikes = Spikes()
    said = [spikes.seen(step, loss) for step, loss in enumerate(losses, start=1)]
    assert said == [""] * len(losses)
    return spikes


def test_a_loss_far_above_the_last_ones_is_named():
    # Median 2.0, median absolute deviation 0.1: from 2.6 on a loss stands out.
    noisy = [2.0 + 0.1 * (-1) ** step for step in range(LAST)]
    assert after(noisy).seen(33, 2.59) == ""
    assert after(noisy).seen(33, 2.61) == "the loss of step 33 stands out: 2.610 after 2.000"


def test_losses_that_hardly_vary_allow_a_tenth():
    assert after([2.0] * LAST).seen(33, 2.19) == ""
    assert after([2.0] * LAST).seen(33, 2.21)


def test_the_first_losses_and_falling_ones_say_nothing():
    assert after([2.0] * (LAST - 1)).seen(32, 90.0) == ""
    after([9.0 / step for step in range(1, 100)])
