"""Run folders, and what several systems need to fill them.

folder.py makes a folder one run's and resumes it, features.py keeps what frozen models computed on
disk, workers.py hands work to other processes or to Ray.
"""
