"""The rules for units whose worker is lost, which the process pool and the Ray cluster share."""

import math

from icmbench.harness.processes.retries import RetryPolicy
from icmbench.harness.work.blocks import ImageBlock
from icmbench.harness.work.loop import WorkUnit

BLOCK = ImageBlock("photos", 0, ("a.png", "b.png"))
ONE, TWO = WorkUnit(BLOCK, (3,)), WorkUnit(BLOCK, (3, 4))


def test_a_unit_of_several_series_is_taken_apart():
    policy = RetryPolicy(1.0, max_losses=2, max_failed_starts=2)
    assert policy.after_loss(TWO) == policy.after_timeout(TWO) == [WorkUnit(BLOCK, (3,)), WorkUnit(BLOCK, (4,))]


def test_a_unit_of_one_series_is_tried_until_it_has_lost_its_workers():
    for max_losses in (2, 3):
        policy = RetryPolicy(None, max_losses, max_failed_starts=2)
        policy.after_loss(TWO)  # the loss of a larger unit is not counted
        assert [policy.after_loss(ONE) for _ in range(max_losses)] == [[ONE]] * (max_losses - 1) + [[]]
        assert policy.after_loss(WorkUnit(BLOCK, (4,))) == [WorkUnit(BLOCK, (4,))]


def test_a_unit_of_one_series_that_is_overdue_is_not_tried_again():
    policy = RetryPolicy(1.5, max_losses=2, max_failed_starts=2)
    assert policy.after_timeout(ONE) == []
    assert policy.overdue_reason == "took longer than the experiment's timeout of 1.5 s an image"


def test_the_time_limit_counts_each_image_of_each_series():
    assert RetryPolicy(1.5, 2, 2).time_limit(TWO) == 6
    assert RetryPolicy(None, 2, 2).time_limit(TWO) == math.inf


def test_failed_starts_count_only_in_a_row_and_while_no_worker_is_up():
    policy = RetryPolicy(None, max_losses=2, max_failed_starts=2)
    losses = [False, False, True, False, False, False]
    assert [policy.cannot_start(any_worker_up=up) for up in losses] == [False] * 5 + [True]
