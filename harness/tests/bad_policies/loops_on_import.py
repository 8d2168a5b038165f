"""Never ends, from its first line on."""

while True:
    pass
