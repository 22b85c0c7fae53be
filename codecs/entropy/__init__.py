"""The deterministic coding core under every learned codec: symbols in, one short stream out, and back, bit for bit.

    y, z --h_s, context nets--> (scale index, mean) a symbol --> one constriction ANS stream --> bytes

    tables      integer frequency tables, one row a model                                    numpy
    coder       symbols and row indexes <-> one ANS stream, with escaped tails               numpy, constriction
    models      EntropyBottleneck (z) and GaussianConditional (y), loading CompressAI's      torch
    exact       where networks run so that encoder and decoder agree: fixed kernels          torch
    integer     networks on a fixed-point grid, exact on any processor ("portable")          torch
    checkerboard, quadtree   context models: SCCTX and Quadtree4                             torch
    hyperprior  z and y in one stream, verified by the encoder                               torch

Importing this package imports none of them.
"""
