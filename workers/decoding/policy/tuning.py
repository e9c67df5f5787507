"""The numbers the policies are tuned by, and where each comes from.

*Simulated*: several values were compared with ``hetero bench regimes``. *Chosen*: reasoned out, no other was tried.
"""

from __future__ import annotations

# The draft length

USUAL_GAMMA = 4  # draft tokens of a window where they are fixed and nothing else is asked. Chosen
MOST_GAMMA = 15  # where measured speeds decide: a window of 16 rows. Chosen

# Waiting for more draft

# A second of waiting counts as so many: while a window is checked the drafter prepares the next one, while the verifier
# waits it does not. Simulated: 1 to 1.6 are equally fast, the larger keeps the verifier busier.
IMPATIENCE = 1.6
# Longest wait for the next draft: so many draft steps and answers (commit told -> first draft below it), and a little
# for the clocks; never beyond a second. Chosen: waits that pay end long before.
PATIENCE_STEPS, PATIENCE_ANSWERS, PATIENCE_S, PATIENCE_MOST = 4.0, 1.5, 2e-3, 1.0
LATE_STEPS = 0.1  # of its steps a drafter rests beyond the time at which it was told to expect a commit. Chosen

# Growing the tree

# Candidates of a node that can become children. Chosen: the target's sample is among the built-in drafter's four best
# in 0.90 of positions (temperature 0.8), so six leave little out.
RANKS = 6
REACH_FLOOR = 2e-5  # nodes reached less often are not worth a row, however cheap it is. Chosen
MOST_LEAVES = 16  # leaves expanded in one forward. Chosen; measured speeds decide below it
BRANCH_WIDTH = 4  # own candidates that a window's node gets as branches. Mirror-SD's kappa, which it has at 8 to 1
HINT_WIDTH = 4  # likeliest next tokens of an early exit that a hint carries, per row: the same kappa

# Learning the drafter's chances: per rank, and per bucket of confidence

BUCKETS = (0.1, 0.25, 0.5, 0.8, 1.2, 1.8, 2.6)  # borders in nats; samplers report 3 at most. Chosen
# Before anything was seen: the chance of a first candidate from FIRST_LOW by up to FIRST_MORE, the surer it is; of a
# later one LATER, less by LATER_FALL a rank. Chosen near the built-in pair's
FIRST_LOW, FIRST_MORE, LATER, LATER_FALL = 0.45, 0.45, 0.35, 0.6
PRIOR_WEIGHT = 6.0  # in observations. Chosen: a first miss must not close a rank
KEPT_OBSERVATIONS = 4000.0  # of a bucket, after which old ones fade. Chosen

# Learning speeds: weights of the newest sample, and what is kept of sums at each window. All chosen

FORWARD_WEIGHT = 0.2  # of T(n), of the seconds between commits, of answers
STEP_START, ANSWER_STEPS = 0.01, 2.0  # seconds of a draft step, and steps of an answer, until one is measured
STEP_WEIGHT = 0.1  # of draft steps as the verifier hears of them: many, and noisy
RATE_KEEP = 0.98  # of the long-run rate: about the last fifty windows
CHANCE_KEEP = 0.998  # of alpha and beta: about the last five hundred
FIRST_DRAFTS = 256  # whose alpha is told beside the one of today
ALPHA_START, BETA_START, START_WEIGHT = 0.7, 0.8, 10.0  # to begin with, as if seen so often

# Switching speculation off. Chosen

BLOCK = 32  # tokens after which the balance is drawn
LOSS = 5.0  # tokens' time that may be lost before: a drafter that gains a fifth comes to it in one of forty blocks
PAUSE = 2.5  # tokens' time that one round can lose: a busy moment of the machine is no verdict
PROBE = 3  # tokens decided plainly to learn what plain decoding costs
FIRST_REST, LONGEST_REST = 64, 1024  # tokens without drafts after a loss; each further one in a row doubles
TAUGHT = 4  # meanwhile a drafter that learns is told of one place in so many, right or wrong
# Sequences after which another mixture of drafters than the best is tried, or any where none pays: at first and at
# most, doubled while what is best stays the same; and how much of a mixture's sums stays at each sequence with it
TRIAL_FIRST, TRIAL_LAST, GAIN_KEEP = 8, 64, 0.9
RENEW = 1024  # tokens of speculation after which plain decoding is measured again: 0.3 % of them

# Looking up what stood behind the same words before (``decoding.proposers``). Chosen

# Tokens of a match that are told apart, and the buckets of their number; places that are looked at; the chance that the
# next token is that of the longest match, or of another, by bucket, until something was seen; and the length from which
# a match that goes on is followed without a look at others.
MATCH, LENGTHS, MATCHES, SURE = 32, (3, 4, 5, 7, 10, 16), 16, 8
TRUST = ((0.2, 0.3, 0.4, 0.55, 0.7, 0.8, 0.9), (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1))
LOOKED_UP = 24  # tokens that are drafted at once
LOOKUP_FLOOR = 0.02  # nodes reached less often are not added

# Predicted outputs (``decoding.proposers.prediction``): tokens of it that are drafted at once; the chance that the next
# one is right, at first and at least and at most, and how much each token that came weighs in it. An edited file, the
# usual case, agrees nearly everywhere and then not for a while.
PREDICTED = 24
PREDICTED_START, PREDICTED_LEAST, PREDICTED_MOST = 0.8, 0.1, 0.98
PREDICTED_WEIGHT = 0.2
