"""Read the command line, then start."""

import importlib
import sys

from . import options

# Imported after the parsing: a wrong flag is refused at once, before the server's libraries are read.
found = options.parse(sys.argv[1:])
importlib.import_module("standin.start").run(found)
