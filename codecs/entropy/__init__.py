"""The deterministic coding core of every learned codec: symbols to one short stream and back, bit for bit.

    y, z --h_s, context nets--> (table row, mean) per symbol --> one constriction ANS stream --> bytes

    tables                   integer frequency tables, one row per distribution                       numpy
    coder                    symbols and table rows to one ANS stream and back, with escapes          numpy, constriction
    models                   probability models of z (EntropyBottleneck) and y (GaussianConditional)  torch
    exact                    runs networks so that encoder and decoder agree, with fixed kernels      torch
    integer                  runs networks on a fixed-point grid, exact on any processor              torch
    context                  what context models, arithmetics and coders of a pass expect             torch
    checkerboard, quadtree   context models of y: SCCTX and Quadtree4                                 torch
    winograd                 fast 5x5 convolutions for `exact`                                        torch
    grid_winograd            fast 3x3 and 5x5 convolutions for `integer`, with exact sums             torch
    hyperprior               z and y in one stream, which the encoder decodes itself                  torch

Importing this package imports none of them.
"""
