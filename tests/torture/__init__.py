"""Worker processes are killed, frozen and stopped while they work; what is left must show nothing lost or doubled.

``python -m tests.torture --help`` runs long rounds, ``test_torture.py`` a small one on the suite's own database.
"""
