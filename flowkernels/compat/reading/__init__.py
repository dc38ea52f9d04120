"""How parts of other libraries' layers are read, where several libraries have the same."""
