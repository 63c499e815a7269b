"""Vision-O3: a decentralised registry for edge AI."""

__version__ = "0.1.0"
