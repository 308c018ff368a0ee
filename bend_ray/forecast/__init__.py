"""What a config will cost before it is run: ``bend plan``.

``calibration`` measures what a processor of this machine does in a second, ``workload`` counts what
a config has to be done, and divides it by that for any number of machines.
Needs no Ray.
"""
