"""Finds norm, addition and activation in an existing model, and computes them in one pass.

Each file is a step. `model` takes the steps one by one:

    norms        nn.BatchNorm* become ours, as plain drop-ins; the modules stay the same objects
    trace        each module's forward is traced with torch.fx, its children as single calls, or refused;
                 purity and watch check that the trace is the forward, and note what it read as conditions
    match        finds norm -> [addition] -> [activation] in the graph; activations, alias list the operators
    plan         puts the last two together for a model
    rewrite      gives the module a forward made of the graph, by a subclass of its class (classes)
    runtime      what that forward calls for a pair: checks again that one pass is right, then runs it
    recompute    lets backward compute outputs of norms again, rather than keep them
    report       what became of each norm
"""
