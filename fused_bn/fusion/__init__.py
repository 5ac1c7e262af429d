"""Finds norm, addition and activation in an existing model, and has them computed in one pass.

The steps, a file each; `model` takes them one by one:

    norms        nn.BatchNorm* become ours, as plain drop-ins; the modules stay the same objects
    trace        each module's forward is traced with torch.fx, its children as single calls, or refused;
                 purity and watch see to it that the trace is the forward: what it read becomes a condition
    match        finds norm -> [addition] -> [activation] in the graph; activations, alias know the operators
    plan         puts the last two together for a model
    rewrite      gives the module a forward made of the graph, by a subclass of its class (classes)
    runtime      what that forward calls for a pair: looks once more whether one pass is right, then runs it
    recompute    outputs of norms that backward computes again rather than keeps
    report       what became of each norm
"""
