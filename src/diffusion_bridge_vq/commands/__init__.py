"""The commands, one module each: `main` reads the command line. `dbvq VERB` and the scripts of examples/ call it."""
