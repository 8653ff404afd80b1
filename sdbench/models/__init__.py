"""What is measured: the catalogue, architectures as data, and loading with its checks."""
