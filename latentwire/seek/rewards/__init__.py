"""Rewards, a file each: how good an answer is. base.py says what each of them declares."""
