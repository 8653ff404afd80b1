"""The commands of `sdbench`, a module for each kind; they import what they need when they run."""
