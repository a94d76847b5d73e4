"""Training, the same for all systems: a loop over (seed, step), resumable to the bit.

Read in this order: settings.py, loop.py, step.py (one update), losses.py, schedules.py,
batches.py; checkpoints.py, alarms.py (alarms), parallel.py (several processes), trackers.py.
"""
