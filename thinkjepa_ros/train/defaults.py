"""Sizes of the trainings behind the shipped mini, one place for the commands' defaults and the stages.

Nothing is imported here, so that `--help` answers at once.
"""

ENCODER_STEPS = 2400
ENCODER_BATCH = 32  #: pairs of frames
SEE_STEPS = 700  #: of the thinker, before the others
THINKER_STEPS = 1000
THINKER_BATCH = 32  #: windows
FORECAST_STEPS = 1500
FORECAST_BATCH = 16  #: forecast origins
FORECAST_LR = 1e-3
GUIDE_STEPS = 1500
GUIDE_LR = 2e-3
SUBGOAL_STEPS = 3000
SUBGOAL_BATCH = 64  #: thoughts
SUBGOAL_LR = 1e-3
#: From a thought to the moment whose latent is its sub-goal: as far as the mini forecasts.
SUBGOAL_HORIZON_S = 3.2
#: Episodes of data/val that a stage is checked on.
VAL_EPISODES = 40
