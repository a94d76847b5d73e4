"""Reads a run folder and says what it shows: one HTML page, one terminal table, a verdict in words.

Nothing is imported here, so that the terminal table does not wait for matplotlib. No module of this
package imports torch: a report is made from files, on any machine.
"""
