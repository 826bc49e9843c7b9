"""Training: one loop for all that is learned, and the methods that learn from rows of data.

`loop` trains whatever an objective (`state.Objective`) defines, resumable after a kill.
Distillation (`compress.distill`) brings its own objectives; those of `thrifty train` are in
`objectives`.
"""
