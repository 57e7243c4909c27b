"""The network: its definition, its checkpoints, its fast form for inference, and all that training takes."""
