"""What the command line does, a module for each kind of command; imports wait until one needs them."""
