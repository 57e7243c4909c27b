"""The network: its definition, its checkpoints, its fast form for inference, a small fit."""
