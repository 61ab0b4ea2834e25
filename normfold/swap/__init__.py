"""Changes the function of a network: exchanges its norms, or their statistics.  Never silent, never by default, always measured.

    advise       which remedy fits which norm                    replace      new norms under the old names
    fit          their statistics-matching start                 distil       layer by layer, then end to end
    measure      what it cost, on samples that were not fitted   recalibrate  new statistics for BatchNorm from data

Everything works on an nn.Module and on samples without labels, before capture.  Nothing in normfold imports it but the command
line and the report.
"""
