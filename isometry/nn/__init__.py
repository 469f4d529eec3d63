"""Initialisers, reference networks and training: how a network is brought to isometry."""
