"""Helpers of the study: notebooks import from here, nothing here imports a notebook.

An import points down, or within a layer to the left, and reading and models never meet:

3 reading: records tallies merging tables published analysis components captions charts plots gantt
  overview drivers commands methods page report summary books workers shelf search squares marks explore
2 models: placement unpacking downloads bases models examples fleet decoding preference sampling
  scheduling engine tracking teacher training evaluation pretraining predictors hub
1 pure: prompts world numbers controls grammar scoring stats ranks spread mixed pooling simulation power
  scaling trend lawcheck calibration speed cards colours
0 ground: children errors paths config files provenance terminal store progress planning receipts resources
  forecast
"""

__version__ = "0.1.0"
