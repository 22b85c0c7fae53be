"""Task models: one module per library that they come from.

The module of each task (`icmbench.tasks.detection`, `icmbench.tasks.retrieval`, ...) says what its models return. To add a model,
write a class with `task`, `fingerprint` and the methods that its task calls, and register it as an entry point of the group
`icmbench.models`.
"""
