"""What a config will cost before it is run: ``bend plan``.

``calibration`` measures what a processor of this machine does in a second, ``workload`` counts what
a config has to be done, and ``prediction`` divides the one by the other for any number of machines.
Needs no Ray.
"""
