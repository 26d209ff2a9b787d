"""The commands, a module each: `add` declares the options, `run` calls one function and prints."""
