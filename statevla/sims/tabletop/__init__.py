"""A toy suite in NumPy: blocks to put into bowls, one arm, two cameras, a scripted expert; nothing to install."""
