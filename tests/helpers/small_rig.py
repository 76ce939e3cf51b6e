"""A rig file with two small simulated arrays."""

RIG = """\
[rig]
name = "small"
[board]
driver = "mock-board"
[board.settings]
arrays = 2
rows = 8
columns = 4
[safety]
max_voltage_v = 2.0
max_current_a = 0.2
max_power_w = 0.4
max_ramp_v_per_s = 10.0
max_read_voltage_v = 0.3
"""
