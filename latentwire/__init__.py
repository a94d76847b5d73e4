"""latentwire reads, writes and searches the continuous interface of a frozen language model."""

__version__ = "0.1.0"
