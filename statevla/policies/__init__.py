"""A trained policy: observation in, action chunk out, and how chunks are executed."""
