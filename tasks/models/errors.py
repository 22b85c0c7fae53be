"""What goes wrong in a task model through input rather than through a defect."""


class ModelError(ValueError):
    """Weights, options or a served model are missing or unusable. One sentence that names the file or key and the remedy."""
