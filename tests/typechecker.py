"""The run-time checker of all annotations in `core`: as PEP 484 has it, an int is welcome where a float is asked for."""

from beartype import BeartypeConf, beartype

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
