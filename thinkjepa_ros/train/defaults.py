"""Sizes of the trainings behind the shipped models, one place for the commands' defaults and the stages.

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

# --- fine-tuning on recordings, `thinkjepa train fine-tune`
#: Share of the recordings that is held out.
HELD_OUT = 0.2
TUNE_SEE_STEPS = 300  #: of encoder and pose readout
TUNE_SEE_BATCH = 8  #: pairs of frames
TUNE_SEE_LR = 1e-3  #: of the pose readout
TUNE_ENCODER_LR = 1e-4
TUNE_STEPS = 400
TUNE_LR = 5e-4
TUNE_GUIDE_STEPS = 400
#: With their variations there are about so many episodes to learn a forecast from.
TUNE_EPISODES = 32

# --- the world model of the controller, `thinkjepa train world`: as models/control/imagination was trained
WORLD_IMAGE = 128  #: pixels per side
WORLD_ENCODER_DEPTH = 4
WORLD_LATENT = 48  #: width of the latents that are planned in
WORLD_POOLED = 4
WORLD_POINTS = 32  #: things that its eye can follow
WORLD_POINTS_WIDTH = 24  #: of the width of a latent
WORLD_SEE_STEPS = 5000  #: steps before the others, in which they learn to see
WORLD_CONTEXT = 2  #: frames
WORLD_HORIZON = 8  #: actions
WORLD_STEPS = 2400
WORLD_BATCH = 24
WORLD_LR = 1e-3

# --- the policy, `thinkjepa train policy`: as models/control/policy was, before its practice
POLICY_WIDTH = 128
POLICY_DETAIL = 48  #: channels of the map that is finer than the encoder's tokens
POLICY_STEPS = 12000
POLICY_BATCH = 16
POLICY_LR = 1.5e-3
SCORE_STEPS = 1000  #: of the language score, `thinkjepa train score`
SCORE_BATCH = 64
SCORE_LR = 1e-3
AHEAD_STEPS = 3000  #: of the sub-goals, `thinkjepa train ahead`
AHEAD_BATCH = 256
AHEAD_LR = 1e-3
