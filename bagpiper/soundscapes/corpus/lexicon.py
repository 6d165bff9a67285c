"""The closed set of words in which captions state facts; the writer and the parser share it."""

from __future__ import annotations

# Nouns per kind: (singular, plural). No noun holds another kind's noun.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "tone": (("pure tone", "pure tones"), ("sine tone", "sine tones")),
    "organ": (("organ note", "organ notes"), ("organ tone", "organ tones")),
    "brass": (("brass note", "brass notes"), ("brass tone", "brass tones")),
    "pluck": (("plucked string", "plucked strings"), ("string pluck", "string plucks")),
    "bell": (("bell", "bells"), ("bell stroke", "bell strokes")),
    "beeps": (("beep", "beeps"), ("electronic beep", "electronic beeps")),
    "chord": (("chord", "chords"),),
    "siren": (("siren", "sirens"), ("wailing siren", "wailing sirens")),
    "sweep": (("sweep", "sweeps"), ("pitch sweep", "pitch sweeps")),
    "rain": (("rain shower", "rain showers"), ("burst of rain", "bursts of rain")),
    "wind": (("gust of wind", "gusts of wind"), ("wind gust", "wind gusts")),
    "rumble": (("engine rumble", "engine rumbles"), ("rumbling engine", "rumbling engines")),
    "knocks": (("knock", "knocks"), ("wooden knock", "wooden knocks")),
    "claps": (("clap", "claps"), ("hand clap", "hand claps")),
    "birds": (("bird call", "bird calls"), ("bird cry", "bird cries")),
    "voice": (("human voice", "human voices"), ("speaking voice", "speaking voices")),
}
LOUDNESS: dict[str, tuple[str, ...]] = {
    "soft": ("soft", "quiet"),
    "moderate": ("moderate", "medium"),
    "loud": ("loud", "strong"),
}
# Before the words that a voice says, which stand in quotation marks.
SAYING = ("saying", "that says")
LENGTH: dict[str, tuple[str, ...]] = {"short": ("short", "brief"), "long": ("long", "lengthy")}
DIRECTION: dict[str, tuple[str, ...]] = {"rising": ("rising", "climbing"), "falling": ("falling", "descending")}
QUALITY: dict[str, tuple[str, ...]] = {"major": ("major",), "minor": ("minor",)}
NUMBERS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four"}

BACKGROUND: dict[str, tuple[str, ...]] = {
    "silence": ("in silence", "amid silence"),
    "hiss": ("in a faint hiss", "amid a faint hiss"),
    "hum": ("in a low hum", "amid a low hum"),
}
# Words that give a background away when a parser meets them.
BACKGROUND_CUES: dict[str, tuple[str, ...]] = {"silence": ("silent", "silence"), "hiss": ("hiss",), "hum": ("hum",)}

# What a kind sounds like; said or not, it adds no fact. None of these words is a fact word.
TEXTURE: dict[str, tuple[str, ...]] = {
    "tone": ("smooth and plain", "clean like a tuning fork"),
    "organ": ("full and hollow", "stacked in octaves"),
    "brass": ("bright and buzzy", "rich and raspy"),
    "pluck": ("dying away like a guitar", "fading as it rings"),
    "bell": ("metallic and ringing on", "clear and metallic"),
    "beeps": ("hollow and even", "even like an alarm clock"),
    "chord": ("three voices together", "sounding in harmony"),
    "siren": ("swinging up and down", "going up and down"),
    "sweep": ("gliding all the way", "sliding smoothly"),
    "rain": ("bright and grainy", "full of drops"),
    "wind": ("airy and swelling", "dull and airy"),
    "rumble": ("deep and throbbing", "deep like a motor"),
    "knocks": ("dull like on a door", "hard and dry"),
    "claps": ("sharp and dry", "crisp and sharp"),
    "birds": ("high and sweet", "high and whistling"),
    "voice": ("clear and calm", "plain and clear"),
}
