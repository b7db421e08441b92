"""State encoders and policies that can be trained, one file each."""
