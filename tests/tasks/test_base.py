"""The contract of tasks: what a task can do is declared and defined, or neither."""

import numpy as np
import pytest

from icmbench.tasks.base import DatasetError, Task, labelled

METHODS = {"draws": "draw", "has_context": "context", "has_pseudo_labels": "pseudo_targets"}


def task_class(*bases, **members):
    return type("Plugin", bases or (Task,), members)


def method(self, *arguments):
    return arguments


@pytest.mark.parametrize(("declaration", "name"), METHODS.items())
def test_an_ability_is_declared_and_defined_or_neither(declaration, name):
    with pytest.raises(TypeError, match=f"'Plugin' defines `{name}` but does not declare `{declaration} = True`; add it$"):
        task_class(**{name: method})
    with pytest.raises(TypeError, match=f"'Plugin' declares `{declaration} = True` but has no `{name}`; define it$"):
        task_class(**{declaration: True})
    assert not getattr(task_class(), declaration)
    assert getattr(task_class(**{declaration: True, name: method}), declaration)


@pytest.mark.parametrize(("declaration", "name"), METHODS.items())
def test_a_declaration_is_inherited_with_its_method(declaration, name):
    able = task_class(**{declaration: True, name: method})
    assert getattr(task_class(able), declaration)
    assert getattr(task_class(able, **{name: method}), declaration)
    assert not getattr(task_class(able, **{declaration: False}), declaration)
    with pytest.raises(TypeError, match="does not declare"):
        task_class(able, **{declaration: False, name: method})


def test_a_method_of_a_mixin_is_declared_too():
    mixin = type("Drawing", (), {"draw": method})
    with pytest.raises(TypeError, match="defines `draw` but does not declare"):
        task_class(mixin, Task)
    assert task_class(mixin, Task, draws=True).draws


def test_by_default_no_image_has_facts_and_a_context_is_the_tasks():
    class Plain(Task):
        name, metrics, schema = "plain", (), None
        predict = statistics = aggregate = method

    class Photographs:
        name, ids = "photographs", ["a.png"]

    task = Plain(Photographs())
    assert task.facts("a.png") is None and task.context_fingerprint == task.fingerprint


def test_a_dataset_without_categories_is_refused_in_one_sentence():
    class Photographs:
        name = "photographs"

    class Categories(Photographs):
        def categories(self, kind):
            return ["cat"]

    class Panoptic(Categories):
        def things(self, kind):
            return np.array([True])

    with pytest.raises(DatasetError, match=r"^dataset 'photographs' has no method `categories`, which task 'detection' calls; "):
        labelled(Photographs(), "detection", "categories")
    assert labelled(Categories(), "detection", "categories").categories("instances") == ["cat"]
    with pytest.raises(DatasetError, match="has no method `things`, which task 'panoptic' calls"):
        labelled(Categories(), "panoptic", "categories", "things")
    labelled(Panoptic(), "panoptic", "categories", "things")
