"""train.py --preflight: the checks that a careful engineer makes before the expensive run.

sequence.py has them in order; machine.py, processes.py and whole_run.py make them.
"""
