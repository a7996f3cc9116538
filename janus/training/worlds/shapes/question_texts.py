"""The sentences of questions, with places for what they ask about."""

COUNT = (
    "how many {} are there?",
    "how many {} are in the picture?",
    "how many {} do you see?",
    "how many {} does the picture show?",
    "count the {}.",
    "what is the number of {}?",
    "tell me how many {} there are.",
)
COLOR = (
    "what color is the {}?",
    "what colour is the {}?",
    "which color does the {} have?",
    "what is the color of the {}?",
    "what is the colour of the {}?",
    "tell me the color of the {}.",
)
SHAPE = (
    "what shape is the {}?",
    "which shape is the {}?",
    "what is the {}?",
    "what is the shape of the {}?",
    "which shape does the {} have?",
    "tell me the shape of the {}.",
)
EXISTS = (
    "is there {a}?",
    "is there {a} in the picture?",
    "do you see {a}?",
    "can you see {a} here?",
    "does the picture contain {a}?",
    "does the picture show {a}?",
    "are there any {plural}?",
    "are there any {plural} in the picture?",
)
WHERE = (
    "where is the {a} relative to the {b}?",
    "where is the {a} compared to the {b}?",
    "where is the {a} as seen from the {b}?",
    "where does the {a} lie with respect to the {b}?",
    "relative to the {b}, where is the {a}?",
    "in which direction from the {b} is the {a}?",
)
MIDDLE = (
    "middle of the picture",
    "center of the picture",
    "centre of the picture",
    "middle",
    "center",
)
EXTREME = (
    "what is {most}?",
    "which object is {most}?",
    "what do you see {most}?",
    "tell me what is {most}.",
)
FARTHEST = {
    "left": ("farthest to the left", "on the far left"),
    "right": ("farthest to the right", "on the far right"),
    "above": ("at the top", "highest"),
    "below": ("at the bottom", "lowest"),
}
DESCRIBE = (
    "describe the picture.",
    "describe the image.",
    "describe what you see.",
    "what is in the picture?",
    "what do you see?",
    "what does the picture show?",
    "list the objects in the picture.",
    "what is shown here?",
)
ALL_NOUNS = ("objects", "objects", "things", "figures")  # not "shapes": two circles could count as one
