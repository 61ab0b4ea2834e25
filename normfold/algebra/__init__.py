"""Pure array functions and the solver of the affine algebra.  Nothing here knows a graph.

ratios    multiplicative unknowns (scale magnitudes and signs): a vectorised, weighted union-find with rollback
offsets   additive unknowns (shifts): a vectorised sparse elimination with rollback
labels    label arrays: which unknown holds at which index of a tensor, and what layout operations do to them
system    both kinds of unknowns and the hard constraints between them
solve     which affine layers can go, given the constraints and an order of wishes
absorb    folding gauges into the weights of linear layers, in float64
"""
