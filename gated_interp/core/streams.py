"""Every stream of random draws that a seed is split into, by name; see :func:`derive`.

Numbers are never changed or used again: they are part of what a seed means, so published results
depend on them. (``SkipTrigramTask.sample_single`` counts its further batches 1, 2 ... instead.)
"""

import enum


@enum.unique
class Stream(enum.IntEnum):
    """What is drawn from ``derive(seed, stream)``; some are split again, by step or attempt."""

    # training: the loop and the stacked loop draw the same
    FIXED_SET = 0
    FRESH_BATCH = 1
    GATE_NOISE = 2
    VARIANCE = 3
    HELD_OUT_SET = 4
    INTERCHANGED = 5
    OPENED = 6
    # recipes: of a gated run's seed
    OUTPUT_SCALE = 11
    BLOCK = 12
    JITTER = 13
    # experiments: of the seed that a table names
    TOY = 21
    GATED = 22
    ATTEMPT = 23
    # what the commands show of a model
    SHOWN_REFERENCE = 31
    SHOWN_RESAMPLE = 32
    SHOWN_ORDERS = 33
    SHOWN_SEQUENCES = 34
    SHOWN_REPLICATES = 35
    # superposition_report
    REPORT_SEQUENCES = 41
    REPORT_REPLICATES = 42
    # the explorer
    EXPLORER_EXAMPLES = 20
    EXPLORER_ACCURACY = 24
    EXPLORER_REFERENCE = 25
    EXPLORER_RESAMPLE = 26
    # text
    REPEATED_TEXT = 51
    MIXTURE = 54
    CAPTURED = 55
    CHOSEN_REPEATS = 57
    MEASURED_REPEATS = 58
    SHUFFLED = 56
    VALIDATION = 52
    TEST = 53
    # adversary_ladder
    LADDER = 71
    LADDER_SHUFFLED = 72
    LADDER_STARTS = 74
    LADDER_TRAINED = 75
    # what is measured of planted circuits
    PLANTED = 73
    # head scores (61, 62 and 65 were of skip trigrams on text)
    PATH_SOURCE = 63
