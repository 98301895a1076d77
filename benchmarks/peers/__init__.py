"""The workloads on other libraries, a file each: ``step(workload)`` builds everything once, and returns the step.

Nothing is imported of a library before its ``step`` is called.
"""
