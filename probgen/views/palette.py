"""Colours of figures and pages: a colour's name -> (light, dark).

Figures are drawn in the light one; pages replace each by its variable, so every value of the light
column must be a colour of its own.
"""

PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#fdfdfb", "#14171c"),
    "card": ("#f4f4ef", "#1d2128"),
    "line": ("#d9d8d0", "#363c47"),
    "ink": ("#1d2127", "#e8e9ea"),
    "muted": ("#5d646e", "#a3abb6"),
    "blue": ("#1f5fbf", "#83b0f5"),
    "orange": ("#b9541a", "#f2a66e"),
    "green": ("#2c7a55", "#7fcfa5"),
    "plum": ("#8a3b7c", "#dc9ad0"),
    "red": ("#a62b34", "#f0979c"),
    "teal": ("#17778a", "#76cfdf"),
}

COLOURS = {name: light for name, (light, _) in PALETTE.items()}
