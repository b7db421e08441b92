"""Demonstrations recorded from scripted experts, in LIBERO's HDF5 layout."""
