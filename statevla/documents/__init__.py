"""The commands of the StateVLA documents, with their flags as written there: tables of flags onto `statevla`'s own."""
