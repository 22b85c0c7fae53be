"""The file that a guest's interpreter runs. It lies alone here, so that no file beside it can hide a module of the guest."""
