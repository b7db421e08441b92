"""The on-disk contract of a StateVLA store: what is written, how it is committed, how it is read and verified."""
