"""What people do around the model: the command line, convert, bootstrap, export, train and draw.

Nothing is imported here, so that `argus --help` stays quick.
"""

__version__ = "0.1.0"
