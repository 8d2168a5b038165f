"""What changed upstream since the policies were proven, told before any number moves."""
