"""Frozen backbones: instruction text to a vector (clip, hashed), camera frames to patch features (siglip, dinov2)."""
