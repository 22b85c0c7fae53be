"""Datasets, one file per format, and `images.py`, which decodes and preprocesses the photographs of all of them.

To add one, write a class with the methods of `icmbench.tasks.base.Dataset`, most easily as a subclass of `folder.ImageFolder` that
overrides `annotated` and `targets`, and name it in your package's entry points `icmbench.datasets`.
"""
