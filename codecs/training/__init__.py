"""Training of the learned codecs: one loop, an objective a codec.

    photographs --data.Crops--> batch --Objective--> {term: loss} --loop.train--> weights --Objective.export--> files a codec loads

An objective is found by the entry point group `icmbench.training`; `icmbench train RECIPE.yaml` runs the stages of one.
"""
