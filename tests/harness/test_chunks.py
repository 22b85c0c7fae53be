"""Batches are bounded by images and by pixels; which images share a batch changes no result."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.work import loop
from icmbench.harness.work.blocks import ImageBlock, Sources

SHAPES = st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), max_size=40)


class Batch:
    """Stands for an experiment, a cell and its series, of which only these attributes matter here."""

    name, label = "codec 1", "codec"

    def __init__(self, shapes, size, seconds=0.0):
        self.experiment = self.series = self
        self.batch_size = size
        self.ids = list(shapes)
        self.seconds_per_image = {self.name: seconds}

    def shares_originals(self, dataset):
        return False


def chunks(shapes, size, seconds=0.0):
    cell = Batch(shapes, size, seconds)
    pace = loop._Pace(cell, ImageBlock("photos", 0, tuple(shapes)), Sources({}, {}, shapes), [cell])
    return [ids for _, ids in pace.steps()]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SHAPES, st.integers(1, 16))
def test_chunks_hold_all_images_in_order_of_shape_and_are_bounded(shapes, size):
    by_id = {str(index): shape for index, shape in enumerate(shapes)}
    parts = chunks(by_id, size)
    assert [image_id for chunk in parts for image_id in chunk] == sorted(by_id, key=by_id.__getitem__)
    for chunk in parts:
        pixels = sum(by_id[image_id][0] * by_id[image_id][1] for image_id in chunk)
        assert 1 <= len(chunk) <= size and (len(chunk) == 1 or pixels <= loop.CHUNK_PIXELS)


@pytest.mark.parametrize(("shape", "sizes"), [((480, 640), [8, 8, 4]), ((2160, 3840), [8, 8, 4]), ((13_000, 13_000), [1] * 20)])
def test_ordinary_images_are_cut_by_number_and_panoramas_one_by_one(shape, sizes):
    shapes = {str(index): shape for index in range(20)}
    assert [len(chunk) for chunk in chunks(shapes, 8)] == sizes


@pytest.mark.parametrize(("seconds", "size"), [(0.001, 8), (loop.WRITE_SECONDS / 4, 4), (loop.WRITE_SECONDS, 1), (1e6, 1)])
def test_chunks_of_slow_codecs_are_small(seconds, size):
    shapes = {str(index): (480, 640) for index in range(16)}
    assert {len(chunk) for chunk in chunks(shapes, 8, seconds)} == {size}


def test_the_bound_changes_no_score(tmp_path, experiment, monkeypatch):
    scores = []
    for bound in (loop.CHUNK_PIXELS, 5000, 1):
        monkeypatch.setattr(loop, "CHUNK_PIXELS", bound)
        result = run(load_experiment(experiment()), tmp_path / str(bound), RunOptions(images=1))
        assert not result.missing
        scores.append(result.scores[[column for column in result.scores if not column.endswith("_seconds")]])
    assert scores[0].equals(scores[1]) and scores[0].equals(scores[2])
