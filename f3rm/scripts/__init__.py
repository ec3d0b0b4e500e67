"""The commands: thin, they parse arguments, call the library and print."""
