"""Object stores: reading, conditional writing, publishing."""
