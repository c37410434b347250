"""Launchers of sweeps. Hydra finds its plugins here (hydra_plugins is a namespace package) and imports all of them."""
