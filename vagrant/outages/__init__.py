"""Power cuts at random instants of a machine's life, faults inside it, and cuts under the stores of agent and
controller.
"""
