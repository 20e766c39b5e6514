"""Workloads from elsewhere: traces of many formats, arrival processes, and recipes turned into conversations."""
