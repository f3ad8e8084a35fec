"""The built-in strategies; each enters through the entry points like any other."""
