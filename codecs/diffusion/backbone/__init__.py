"""Stable Diffusion under the codecs: its networks and profiles, the control module, LoRA layers, tiles, CUDA graphs; where weight
files are searched, and how published checkpoints are read and their tensors renamed."""
