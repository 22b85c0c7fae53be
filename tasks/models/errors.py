"""The error that task models raise when their input is at fault, not their code."""


class ModelError(ValueError):
    """Weights, options or a served model are missing or unusable. The message names the file or key and the remedy."""
